"""Recognises float weights that are already ternary with several scales: per row, or per group of columns.

No packing reads such a tensor. Quantizing it as master weights would replace all its scales by one, which
changes the values by tens of percent and still looks like a ternary model to every later check.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitexport.errors import UnsupportedError

#: Columns per scale that quantizers use within a row.
GROUP_SIZES = (256, 128, 64, 32)

#: Elements of the first rows, by which ordinary weights are ruled out.
FIRST_ELEMENTS = 1 << 18

#: Columns of a group that are compared first.
LOOKAHEAD = 8

#: The share of groups that must have a single magnitude. Trained float weights have none.
MIN_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class ScaleGroups:
    """Groups of a float tensor within which all nonzero values have the same magnitude.

    Attributes:
        columns: the columns of a group; all columns of the tensor if there is a scale per row.
        per_row: whether a group is a row.
        share: the fraction of groups with a single magnitude, among those with two nonzero values or more.
        low, high: the smallest and the largest scale.
    """

    columns: int
    per_row: bool
    share: float
    low: float
    high: float

    def describe(self) -> str:
        """The finding as a clause."""
        unit = "row" if self.per_row else f"group of {self.columns} columns"
        return (
            f"is already ternary with a scale per {unit}: {self.share:.1%} of the {unit.split()[0]}s contain "
            f"only -a, 0 and a, with a from {self.low:g} to {self.high:g}"
        )


def find_scale_groups(weights: npt.NDArray[np.float32]) -> ScaleGroups | None:
    """The largest groups of float32 ``weights`` ``[out, in]`` with one magnitude each; None without any.

    A tensor with a single magnitude has such groups, too: look for that first. Ordinary weights are ruled out
    by their first rows.
    """
    if weights.ndim != 2 or weights.size == 0:
        return None
    columns = weights.shape[1]
    first = weights[: max(1, FIRST_ELEMENTS // columns)]
    for size in (columns, *GROUP_SIZES):
        if size > columns or columns % size:
            continue
        fits, counted = _single_magnitude(first, size)
        if counted.any() and not _enough(fits, counted):
            continue
        fits, counted = _single_magnitude(weights, size)
        if not _enough(fits, counted):
            continue
        scales = np.abs(weights.reshape(-1, size)).max(axis=1)[fits]
        share = np.count_nonzero(fits) / np.count_nonzero(counted)
        return ScaleGroups(size, size == columns, share, float(scales.min()), float(scales.max()))
    return None


def reject_scale_groups(weights: npt.NDArray[np.float32], name: str, advice: str) -> None:
    """Raise UnsupportedError if ``weights`` ``[out, in]`` are ternary with several scales.

    Args:
        name: of the tensor.
        advice: what to do instead, for the message.
    """
    found = find_scale_groups(weights)
    if found is not None:
        raise UnsupportedError(f"tensor '{name}' {found.describe()}; expected one scale per tensor: {advice}")


def _single_magnitude(
    weights: npt.NDArray[np.float32], size: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Of every group of ``size`` columns: whether it has a single magnitude, and whether it counts.

    A group with one nonzero value has one magnitude by itself and does not count.
    """
    groups = weights.reshape(-1, size)
    # two magnitudes among the first columns settle almost every group of ordinary weights
    single = _one_magnitude(groups[:, :LOOKAHEAD])
    counted = ~single
    left = np.flatnonzero(single)
    rest = groups[left]
    single[left] = _one_magnitude(rest)
    counted[left] = np.count_nonzero(rest, axis=1) > 1
    return single & counted, counted


def _one_magnitude(groups: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Of every row: whether all its nonzero values have the same magnitude."""
    magnitudes = np.abs(groups)
    largest = magnitudes.max(axis=1, keepdims=True)
    single: npt.NDArray[np.bool_] = np.all((magnitudes == 0) | (magnitudes == largest), axis=1)
    return single


def _enough(fits: npt.NDArray[np.bool_], counted: npt.NDArray[np.bool_]) -> bool:
    total = int(np.count_nonzero(counted))
    return total > 0 and int(np.count_nonzero(fits)) >= MIN_SHARE * total
