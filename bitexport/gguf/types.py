"""The tensor types of GGUF files, including I2_S.

The ``gguf`` package has every type except two: number 36, which upstream removed and Microsoft's files use
for I2_S; and number 42, Q2_0, which the pinned llama.cpp has but the matching release of the package lacks.
They are added here and nowhere else.
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
    """The storage type of a GGUF tensor.

    Attributes:
        name: in lower case, as ggml prints it.
        id: the number in the file.
        block: elements per block; a row is a whole number of blocks (in I2_S only the tensor is).
        block_bytes: bytes per block.
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
        """Bytes of a tensor of ``shape``, without the padding after it in a file."""
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

#: The types that ternary tensors are stored in, the default first.
TERNARY_KINDS = (I2_S, TQ2_0, TQ1_0, Q2_0, F16)

#: The longest row whose sums fit in our kernels' 32 bits; max_cols of native/kernels/ternary/ternary.h.
MAX_I2_S_ROW = 65536


def runs(kind: TensorType, shape: Sequence[int]) -> bool:
    """Whether a linear layer can be stored as ``kind`` and run by our kernels.

    Args:
        shape: ``[out, in]``, or ``[experts, out, in]``; in I2_S the codes of an expert are whole blocks.
    """
    if kind is not I2_S:
        return kind.fits(shape)
    columns = shape[-1]
    return len(shape) in (2, 3) and kind.fits(shape[-2:]) and columns % 4 == 0 and columns <= MAX_I2_S_ROW


def alternatives(shape: Sequence[int], group: int | None = None) -> str:
    """The ternary types that can store a layer of ``shape``, for an error message: ``"i2_s or f16"``.

    Args:
        shape: ``[out, in]``, or ``[experts, out, in]``.
        group: how many neighbouring weights of a row share a scale; None if the whole tensor does.
    """
    found = [kind.name for kind in TERNARY_KINDS if runs(kind, shape) and has_scales(kind, group)]
    return " or ".join(found)


def has_scales(kind: TensorType, group: int | None) -> bool:
    """Whether a type can store a scale for every ``group`` of weights of a row; None is one per tensor."""
    return group is None or (kind is not I2_S and group % kind.block == 0)


def smallest_exact(shape: Sequence[int], group: int | None) -> TensorType:
    """The smallest type in :data:`TERNARY_KINDS` that has a scale for every group of a linear layer.

    I2_S is chosen for every layer with one scale that it can store: it alone stores float32 scales. F16,
    which stores any group, is chosen when no other type can.

    Args:
        shape: ``[out, in]``, or ``[experts, out, in]``.
        group: how many neighbouring weights of a row share a scale; None if the whole tensor does.
    """
    if group is None and runs(I2_S, shape):
        return I2_S
    fitting = [
        kind for kind in TERNARY_KINDS if kind is not I2_S and runs(kind, shape) and has_scales(kind, group)
    ]
    return min(fitting, key=lambda kind: kind.block_bytes / kind.block)


#: ``general.file_type`` by the type of the ternary tensors. 40 is Microsoft's number, which upstream uses for
#: Q1_0.
FILE_TYPES: Mapping[str, int] = MappingProxyType(
    {"i2_s": 40, "f32": 0, "f16": 1, "tq1_0": 36, "tq2_0": 37, "q2_0": 41, "q4_0": 2}
)


def file_type_name(number: int, tensor_types: Sequence[str]) -> str:
    """The name of a ``general.file_type``; number 40 is I2_S or Q1_0, depending on the tensor types."""
    if number == FILE_TYPES["i2_s"] and I2_S.name in tensor_types:
        return I2_S.name
    if number == FILE_TYPES["q2_0"]:
        return Q2_0.name
    try:
        name: str = gguf.LlamaFileType(number).name
        return name.lower().removeprefix("mostly_").removeprefix("all_")
    except ValueError:
        return f"unknown ({number})"
