"""Recognises float weights that are already ternary, with one scale or with several.

A group of neighbouring weights in a row is ternary if all its nonzero values have the same magnitude, bit for
bit. The scales of a tensor can be one, one per row (a block of rows that share a scale is the same), or one
per group of :data:`GROUP_SIZES` columns. Quantizing such a tensor as master weights would replace all its
scales by one, which changes the values by tens of percent and still looks like a ternary model to every later
check; therefore it is looked for first.

A tensor is scanned once, some rows at a time. Of every unit of 32 columns the scan keeps the magnitude and
whether there are several; the size of the groups follows from these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitexport.ternary import GROUP_SIZES

#: Elements of the first rows, by which ordinary weights are ruled out.
FIRST_ELEMENTS = 1 << 18

#: Columns of a group that are compared first.
LOOKAHEAD = 8

#: The share of groups that must have a single magnitude. Trained float weights have none.
MIN_SHARE = 0.9

#: The share of neighbours with equal magnitudes above which weights are ternary in some other way. Trained
#: float weights have less than 1% (bfloat16 has 128 magnitudes per power of two), weights of 4 bits some 15%.
MIN_EQUAL_NEIGHBOURS = 0.75


@dataclass(frozen=True, slots=True)
class ScaleGroups:
    """Groups of a float tensor within which all nonzero values have the same magnitude.

    Attributes:
        group: the columns of a group: all of a row if there is a scale per row; None if there is one scale.
        columns: of the tensor.
        share: the fraction of groups with a single magnitude, among those with two nonzero values or more.
        low, high: the smallest and the largest scale; both 0 if the tensor is all zeros.
        misfit: a group with several magnitudes, as a clause; empty if there is none.
    """

    group: int | None
    columns: int
    share: float
    low: float
    high: float
    misfit: str = ""

    @property
    def complete(self) -> bool:
        """Whether all groups fit."""
        return not self.misfit

    def describe(self) -> str:
        """The finding as a clause."""
        unit = unit_of(self.group, self.columns)
        return (
            f"is already ternary with a scale per {unit}: {percent(self.share)} of the {unit.split()[0]}s "
            f"contain only -a, 0 and a, with a from {self.low:g} to {self.high:g}"
        )


def unit_of(group: int | None, columns: int) -> str:
    """What shares a scale, in words: ``tensor``, ``row`` or ``group of 128 columns``."""
    if group is None:
        return "tensor"
    return "row" if group == columns else f"group of {group} columns"


def percent(share: float) -> str:
    """A share with enough digits that only a complete one is 100%."""
    if share == 1:
        return "100%"
    return f"{min(share, 0.99999):.3%}" if share > 0.999 else f"{share:.1%}"


def row_chunks(weights: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
    """``weights`` ``[out, in]``, some rows at a time."""
    step = max(1, FIRST_ELEMENTS // max(weights.shape[1], 1))
    for start in range(0, len(weights), step):
        yield weights[start : start + step]


def is_ordinary(first: npt.NDArray[np.float32]) -> bool:
    """Whether the first rows of a tensor ``[rows, in]`` rule out that it is ternary."""
    if first.ndim != 2 or first.size == 0:
        return True
    scan = _Scan(first.shape[1])
    # two magnitudes among the first columns settle almost every group of ordinary weights
    groups = first.reshape(-1, scan.unit)
    several = ~_one_magnitude(groups[:, :LOOKAHEAD])[1]
    if np.count_nonzero(several) > (1 - MIN_SHARE) * several.size:
        return True
    scan.add(first)
    share, counted = scan.share(scan.unit)
    return counted and share < MIN_SHARE


def find_scale_groups(
    chunks: npt.NDArray[np.float32] | Iterable[npt.NDArray[np.float32]],
) -> ScaleGroups | None:
    """The largest groups with one magnitude each of float32 weights ``[out, in]``; None without any.

    Args:
        chunks: the weights, or some of their rows at a time. Ordinary weights are ruled out by the first of
            them.
    """
    if isinstance(chunks, np.ndarray):
        if chunks.ndim != 2 or chunks.size == 0:
            return None
        chunks = row_chunks(chunks)
    scan: _Scan | None = None
    for rows in chunks:
        if scan is None:
            if is_ordinary(rows):
                return None
            scan = _Scan(rows.shape[1])
        scan.add(rows)
    return scan.groups() if scan is not None else None


def equal_neighbours(first: npt.NDArray[np.float32]) -> bool:
    """Whether neighbours in a tensor's first rows ``[rows, in]`` mostly have the same magnitude.

    Such weights are ternary in groups of another size or direction, for example with a scale per column.
    """
    if first.ndim != 2 or first.size == 0:
        return False
    magnitudes = np.abs(first)
    for lines in (magnitudes, magnitudes.T):
        nonzero = lines[lines != 0]
        if nonzero.size > 64 and np.mean(nonzero[1:] == nonzero[:-1]) > MIN_EQUAL_NEIGHBOURS:
            return True
    return False


class _Scan:
    """Collects what a tensor's units show: each one's magnitude, and whether it has several values.

    Attributes:
        unit: the columns of a unit: the smallest of the group sizes, or a row if none divides it.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.unit = GROUP_SIZES[-1] if columns % GROUP_SIZES[-1] == 0 else columns
        self._scales: list[npt.NDArray[np.float32]] = []
        self._single: list[npt.NDArray[np.bool_]] = []
        self._several: list[npt.NDArray[np.bool_]] = []
        self._misfit = ""
        self._rows = 0

    def add(self, rows: npt.NDArray[np.float32]) -> None:
        """The next rows, ``[rows, columns]``."""
        shape = (len(rows), self.columns // self.unit)
        largest = np.float32(max(rows.max(initial=0), -rows.min(initial=0)))
        if np.count_nonzero(rows) == np.count_nonzero(np.abs(rows) == largest) or largest == 0:
            # a unit that is all zeros fits any scale
            self._append(np.full(shape, largest), np.ones(shape, bool), np.full(shape, largest > 0))
        else:
            groups = rows.reshape(-1, self.unit)
            scales, single = _one_magnitude(groups)
            several = np.count_nonzero(groups, axis=1) > 1
            if not self._misfit and not single.all():
                self._misfit = self._named(groups, int(np.argmin(single)))
            self._append(scales.reshape(shape), single.reshape(shape), several.reshape(shape))
        self._rows += len(rows)

    def share(self, size: int) -> tuple[float, bool]:
        """The share of groups of ``size`` columns with one magnitude, and whether any group counts."""
        fits, counts, _ = self._grouped(size)
        counted = int(np.count_nonzero(counts))
        return (int(np.count_nonzero(fits & counts)) / counted if counted else 1.0), counted > 0

    def groups(self) -> ScaleGroups | None:
        """The largest groups of which enough have one magnitude."""
        scales, single = np.concatenate(self._scales), np.concatenate(self._single)
        self._scales, self._single = [scales], [single]
        self._several = [np.concatenate(self._several)]
        used = scales[single & (scales > 0)]
        low, high = (float(used.min()), float(used.max())) if used.size else (0.0, 0.0)
        if single.all() and low == high:
            return ScaleGroups(None, self.columns, 1.0, low, high)
        for size in (self.columns, *GROUP_SIZES):
            if size > self.columns or self.columns % size or size % self.unit:
                continue
            fits, _, merged = self._grouped(size)
            share, counted = self.share(size)
            if fits.all():
                return ScaleGroups(size, self.columns, 1.0, low, high)
            if counted and share >= MIN_SHARE:
                misfit = self._misfit or self._between(fits, merged, size)
                return ScaleGroups(size, self.columns, share, low, high, misfit)
        return None

    def _append(
        self, scales: npt.NDArray[np.float32], single: npt.NDArray[np.bool_], several: npt.NDArray[np.bool_]
    ) -> None:
        self._scales.append(scales.astype(np.float32))
        self._single.append(single)
        self._several.append(several)

    def _grouped(
        self, size: int
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
        """Of every group of ``size`` columns: whether it fits, whether it counts, and its units' scales.

        A group with one nonzero value has one magnitude by itself and does not count.
        """
        units = size // self.unit
        scales = np.concatenate(self._scales).reshape(-1, units)
        single = np.concatenate(self._single).reshape(-1, units)
        several = np.concatenate(self._several).reshape(-1, units)
        largest = scales.max(axis=1, keepdims=True)
        fits = single.all(axis=1) & np.all((scales == 0) | (scales == largest), axis=1)
        counts = several.any(axis=1) | (np.count_nonzero(scales, axis=1) > 1)
        return fits, counts, scales

    def _named(self, groups: npt.NDArray[np.float32], index: int) -> str:
        """A unit with two magnitudes, as a clause."""
        found = np.unique(np.abs(groups[index][groups[index] != 0]))
        row, unit = divmod(index, self.columns // self.unit)
        first = unit * self.unit
        return (
            f"row {self._rows + row}, columns {first} to {first + self.unit - 1} contain {found[0]:g} and "
            f"{found[-1]:g}"
        )

    def _between(self, fits: npt.NDArray[np.bool_], scales: npt.NDArray[np.float32], size: int) -> str:
        """A group whose units have different magnitudes, as a clause."""
        index = int(np.argmin(fits))
        row, group = divmod(index, self.columns // size)
        used = scales[index][scales[index] > 0]
        return (
            f"row {row}, columns {group * size} to {(group + 1) * size - 1} contain {used.min():g} and "
            f"{used.max():g}"
        )


def _one_magnitude(
    groups: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Of every row: the largest magnitude, and whether all nonzero values have it."""
    magnitudes = np.abs(groups)
    largest = magnitudes.max(axis=1)
    single: npt.NDArray[np.bool_] = np.all((magnitudes == 0) | (magnitudes == largest[:, None]), axis=1)
    return largest, single
