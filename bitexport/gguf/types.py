"""The tensor types of GGUF files, I2_S among them.

The ``gguf`` package knows every type but two: number 36, which upstream gave up and Microsoft's files use for
I2_S; and number 42, Q2_0, which the pinned llama.cpp has and that release of the package has not. This is the
one place where they join the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import gguf

I2_S_ID = 36


@dataclass(frozen=True, slots=True)
class TensorType:
    """How a GGUF tensor's elements are stored.

    Attributes:
        name: in lower case, as ggml prints it.
        id: the number in the file.
        block: elements in a block; a row holds a whole number of them (I2_S: the whole tensor does).
        block_bytes: bytes in a block.
        tail_bytes: bytes after the last block of the tensor.
    """

    name: str
    id: int
    block: int
    block_bytes: int
    tail_bytes: int = 0

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of ``shape`` (outermost first) can be stored."""
        if self.id == I2_S_ID:
            return math.prod(shape) % self.block == 0
        return bool(shape) and shape[-1] % self.block == 0

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of ``shape``, without the padding that follows it in a file."""
        return math.prod(shape) // self.block * self.block_bytes + self.tail_bytes


I2_S = TensorType("i2_s", I2_S_ID, block=128, block_bytes=32, tail_bytes=32)
Q2_0 = TensorType("q2_0", 42, block=64, block_bytes=18)


def _known() -> dict[int, TensorType]:
    known = {
        int(kind): TensorType(kind.name.lower(), int(kind), *gguf.GGML_QUANT_SIZES[kind])
        for kind in gguf.GGMLQuantizationType
        if kind in gguf.GGML_QUANT_SIZES
    }
    known[I2_S.id] = I2_S
    known[Q2_0.id] = Q2_0
    return known


TYPES_BY_ID: Mapping[int, TensorType] = MappingProxyType(_known())
TYPES: Mapping[str, TensorType] = MappingProxyType({kind.name: kind for kind in TYPES_BY_ID.values()})

F32 = TYPES["f32"]
F16 = TYPES["f16"]
TQ1_0 = TYPES["tq1_0"]
TQ2_0 = TYPES["tq2_0"]
Q4_0 = TYPES["q4_0"]

#: what ternary tensors are stored in, the default first.
TERNARY_KINDS = (I2_S, TQ2_0, TQ1_0, Q2_0, F16)

#: the longest row whose sums our kernels hold in 32 bits; max_cols of native/ternary/ternary.h.
MAX_I2_S_ROW = 65536


def runs(kind: TensorType, shape: Sequence[int]) -> bool:
    """Whether a linear layer of ``shape`` ``[out, in]`` fits ``kind`` and our kernels can run it."""
    return kind.fits(shape) and (
        kind is not I2_S or (len(shape) == 2 and shape[-1] % 4 == 0 and shape[-1] <= MAX_I2_S_ROW)
    )


def alternatives(shape: Sequence[int], group: int | None = None) -> str:
    """The ternary types that hold a layer of ``shape``, as an error names them: ``"i2_s or f16"``.

    Args:
        group: how many neighbouring weights of a row share a scale; the whole tensor does when None.
    """
    found = [
        kind.name
        for kind in TERNARY_KINDS
        if runs(kind, shape) and (group is None or (kind is not I2_S and group % kind.block == 0))
    ]
    return " or ".join(found)


#: ``general.file_type`` by the type of the ternary tensors. 40 is Microsoft's number; upstream gave it to
#: Q1_0 too.
FILE_TYPES: Mapping[str, int] = MappingProxyType(
    {"i2_s": 40, "f16": 1, "tq1_0": 36, "tq2_0": 37, "q2_0": 41, "q4_0": 2}
)


def file_type_name(number: int, tensor_types: Sequence[str]) -> str:
    """The name of a ``general.file_type``; the tensors tell I2_S from Q1_0, which share number 40."""
    if number == FILE_TYPES["i2_s"] and I2_S.name in tensor_types:
        return I2_S.name
    if number == FILE_TYPES["q2_0"]:
        return Q2_0.name
    try:
        name: str = gguf.LlamaFileType(number).name
        return name.lower().removeprefix("mostly_").removeprefix("all_")
    except ValueError:
        return f"unknown ({number})"
