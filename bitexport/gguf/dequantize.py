"""A GGUF tensor's values as float32.

``gguf.quants`` has the table from type to function; I2_S, Q2_0 and the types of other projects, which it
lacks, are read by their packers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache

import gguf
import numpy as np
import numpy.typing as npt

from bitexport.errors import GGUFError
from bitexport.gguf.packers import FOREIGN_UNPACKERS, PACKERS
from bitexport.gguf.reader import GGUFFile, GGUFTensor
from bitexport.gguf.types import I2_S, Q2_0, TensorType
from bitexport.ternary import AnyTernary, dequantized_rows

Bytes = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float32]

#: Roughly how many weights of a float tensor are in memory at once.
CHUNK_WEIGHTS = 8 * 1024 * 1024

#: Ternary types with a scale for every block of a row, or for every row.
BLOCK_TERNARY_TYPES = ("tq1_0", "tq2_0", "q2_0", *FOREIGN_UNPACKERS)


def rows_per_chunk(shape: Sequence[int], weights: int | None = None) -> int:
    """How many rows of a tensor of ``shape`` hold about ``weights`` weights, at least 1.

    Args:
        weights: :data:`CHUNK_WEIGHTS` if None.
    """
    return max(1, (CHUNK_WEIGHTS if weights is None else weights) // max(1, math.prod(shape[1:])))


def _by_gguf(rows: Bytes, kind: TensorType) -> Matrix:
    """The bytes of some rows, uint8 ``[rows, bytes]``, to their values, ``[rows, columns]``."""
    return np.asarray(gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(kind.id)), dtype=np.float32)


@cache
def _gguf_implements(kind: TensorType) -> bool:
    """Whether the gguf package can dequantize a type, which only a call shows."""
    try:
        _by_gguf(np.zeros((1, kind.block_bytes), dtype=np.uint8), kind)
    except (NotImplementedError, ValueError):  # ValueError: not even the type's number
        return False
    return True


#: Types that are read completely, by their packers: blocks of I2_S straddle rows, and an error in Q2_0 names
#: the block of the tensor.
READ_WHOLE = (I2_S, Q2_0)


def can_dequantize(kind: TensorType) -> bool:
    """Whether tensors of a type can be read as floats."""
    return kind in READ_WHOLE or kind.name in FOREIGN_UNPACKERS or _gguf_implements(kind)


def unpack_foreign(file: GGUFFile, tensor: GGUFTensor) -> AnyTernary:
    """The trits and scales of a tensor of another project's type, its matrices stacked: ``[rows, in]``.

    Raises:
        GGUFError: the bytes are not what the type says.
        UnsupportedError: it is not ternary.
    """
    if not math.prod(tensor.shape):
        raise GGUFError(f"it has shape {list(tensor.shape)} and no weights; the file is damaged")
    return FOREIGN_UNPACKERS[tensor.type.name](file.data(tensor), tensor.shape)


def dequantize(file: GGUFFile, tensor: GGUFTensor) -> Matrix:
    """All values of a tensor: float32 ``[rows, columns]``; otherwise as :func:`dequantize_rows`."""
    values = np.empty(_matrix_shape(tensor), dtype=np.float32)
    start = 0
    for piece in dequantize_rows(file, tensor):
        values[start : start + len(piece)] = piece
        start += len(piece)
    return values


def dequantize_rows(file: GGUFFile, tensor: GGUFTensor) -> Iterator[Matrix]:
    """The values of a tensor, some rows at a time; those of :data:`READ_WHOLE` at once.

    Yields:
        float32 ``[rows, columns]``: a row is an element of the first dimension; a vector is one row.

    Raises:
        GGUFError: the type cannot be dequantized, or the bytes are not what the type says.
        UnsupportedError: a Q2_0 tensor is not ternary.
    """
    kind = tensor.type
    if not can_dequantize(kind):
        raise GGUFError(
            f"{file.path.name}: tensor '{tensor.name}' is {kind.name}, which cannot be read back; expected "
            "a type of weights, such as f16 or q6_k: convert the checkpoint again"
        )
    rows, columns = _matrix_shape(tensor)
    if not rows * columns:
        return
    if kind in READ_WHOLE:
        matrix = (math.prod(tensor.shape[:-1]), tensor.shape[-1])
        yield PACKERS[kind.name].unpack(file.data(tensor), matrix).dequantize().reshape(rows, columns)
        return
    step = rows_per_chunk(tensor.shape)
    if kind.name in FOREIGN_UNPACKERS:
        weights = unpack_foreign(file, tensor)
        for values in dequantized_rows(weights, step * (len(weights.trits) // rows)):
            yield values.reshape(-1, columns)
        return
    data = file.data(tensor).reshape(rows, -1)
    for start in range(0, rows, step):
        yield _by_gguf(np.ascontiguousarray(data[start : start + step]), kind)


def _matrix_shape(tensor: GGUFTensor) -> tuple[int, int]:
    """The tensor's shape as a matrix: all dimensions but the first are merged; a vector is one row."""
    shape = tensor.shape if len(tensor.shape) > 1 else (1, *tensor.shape)
    return shape[0], math.prod(shape[1:])
