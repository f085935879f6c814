"""The value types between reading and writing: a ternary weight matrix, as trits and scales."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class TernaryTensor:
    """A weight matrix whose every value is ``trit * scale``.

    Every packing (``bitexport.checkpoint.packings``) produces it and every packer
    (``bitexport.gguf.packers``) consumes it, so that neither needs to know about the other.

    Attributes:
        trits: int8, shape ``[out, in]``, values in {-1, 0, +1}, row-major.
        scale: float32, positive and finite; one for the whole tensor.
        dequantized: whether it was stored as floats whose only values are -scale, 0 and scale.
    """

    trits: npt.NDArray[np.int8]
    scale: np.float32
    dequantized: bool = False

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The matrix as float32, shape ``[out, in]``."""
        return self.trits.astype(np.float32) * self.scale


@dataclass(frozen=True, slots=True)
class GroupedTernary:
    """A weight matrix whose rows are divided into groups, each with its own scale.

    Only block types and float16 can store it; I2_S has one scale per tensor.

    Attributes:
        trits: int8, shape ``[out, in]``, values in {-1, 0, +1}, row-major.
        scales: float32, shape ``[out, in / group]``, finite; positive, or 0 for a group that is all zeros.
    """

    trits: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]

    @property
    def group(self) -> int:
        """How many neighbouring weights of a row share a scale."""
        return int(self.trits.shape[1] // self.scales.shape[1])

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The matrix as float32, shape ``[out, in]``."""
        return self.trits.astype(np.float32) * np.repeat(self.scales, self.group, axis=1)


AnyTernary: TypeAlias = TernaryTensor | GroupedTernary


def frobenius_norm(tensor: AnyTernary) -> float:
    """The root of the sum of the squares of all values."""
    if isinstance(tensor, TernaryTensor):
        return float(tensor.scale) * float(np.sqrt(np.count_nonzero(tensor.trits)))
    used = np.count_nonzero(tensor.trits.reshape(*tensor.scales.shape, -1), axis=2)
    return float(np.sqrt(np.sum(used * np.square(tensor.scales, dtype=np.float64))))


#: Columns per scale that quantizers use within a row, the largest first.
GROUP_SIZES = (256, 128, 64, 32)


def dequantized_rows(tensor: AnyTernary, rows: int) -> Iterator[npt.NDArray[np.float32]]:
    """The values of a tensor, ``rows`` rows at a time: float32 ``[rows, in]``."""
    for start in range(0, len(tensor.trits), rows):
        trits = tensor.trits[start : start + rows]
        if isinstance(tensor, TernaryTensor):
            yield TernaryTensor(trits, tensor.scale).dequantize()
        else:
            yield GroupedTernary(trits, tensor.scales[start : start + rows]).dequantize()


def reordered(tensor: AnyTernary, order: npt.NDArray[np.intp]) -> AnyTernary:
    """The tensor with its rows in another order: ``new[i] = old[order[i]]``."""
    if isinstance(tensor, TernaryTensor):
        return replace(tensor, trits=tensor.trits[order])
    return GroupedTernary(tensor.trits[order], tensor.scales[order])


def merge_equal_scales(scales: npt.NDArray[np.float32], columns: int) -> npt.NDArray[np.float32]:
    """The same scales with as few groups as possible.

    Args:
        scales: ``[out, n]``, of groups of ``columns / n`` columns.

    Returns:
        ``[1, 1]`` if all are equal, otherwise ``[out, m]`` with one per row or per group of
        :data:`GROUP_SIZES`, as far as neighbours are equal. A scale of 0 is equal to any.
    """
    out, count = scales.shape
    if scales.size == 1:
        return scales
    for size in (out * columns, columns, *GROUP_SIZES):
        if size % (columns // count) or (out * columns) % size or (size < columns and columns % size):
            continue
        merged = scales.reshape(-1, size // (columns // count))
        largest = merged.max(axis=1, keepdims=True)
        if np.all((merged == largest) | (merged == 0)):
            found: npt.NDArray[np.float32] = largest.reshape(1 if size == out * columns else out, -1)
            return found
    return scales


def grouped(trits: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]) -> AnyTernary:
    """Trits ``[out, in]`` and scales ``[out, n]`` or ``[1, 1]`` as the simplest tensor with these values.

    A group that is all zeros gets scale 0; a tensor that has one scale keeps it even then.
    """
    out, columns = trits.shape
    scales = merge_equal_scales(scales, columns)
    if scales.size == 1:
        return collapse_equal_scales(trits, scales)
    used = np.any(trits.reshape(out, scales.shape[1], -1), axis=2)
    return collapse_equal_scales(trits, np.where(used, scales, np.float32(0)))


def collapse_equal_scales(trits: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]) -> AnyTernary:
    """A :class:`TernaryTensor` if all groups have the same scale, otherwise a :class:`GroupedTernary`.

    Args:
        trits, scales: as in :class:`GroupedTernary`. A tensor that is all zeros gets scale 1.
    """
    largest = np.float32(scales.max(initial=0))
    if np.all((scales == largest) | (scales == 0)):
        return TernaryTensor(trits, largest if largest > 0 else np.float32(1))
    return GroupedTernary(trits, scales)


#: The largest relative difference between neighbouring values of a dtype: one unit in the last place.
STEPS: Mapping[str, float] = MappingProxyType({"F16": 2.0**-10, "BF16": 2.0**-7})


def common_magnitudes(
    groups: npt.NDArray[np.float32], step: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """The scales of ternary groups whose magnitudes may differ by one step of their dtype.

    Some published files have a few such groups. The magnitude of most weights is the scale.

    Args:
        groups: float32 ``[n, size]``.
        step: one of :data:`STEPS`.

    Returns:
        The scales, float32 ``[n]``, and of every group whether its nonzero magnitudes are that close.
    """
    magnitudes = np.abs(groups)
    largest: npt.NDArray[np.float32] = magnitudes.max(axis=1, initial=0)
    smallest = np.where(magnitudes > 0, magnitudes, np.inf).min(axis=1, initial=np.inf)
    fits: npt.NDArray[np.bool_] = (largest == 0) | (largest <= smallest * (1 + step))
    scales = largest.copy()
    for index in np.flatnonzero(fits & (largest != smallest) & (largest > 0)):
        values, counts = np.unique(magnitudes[index][magnitudes[index] > 0], return_counts=True)
        scales[index] = values[np.argmax(counts)]
    return scales, fits
