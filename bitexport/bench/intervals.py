"""How sure a median is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

#: The confidence that an interval has, if there are enough values for it.
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A median of values, and an interval around it.

    Attributes:
        median: of the values.
        low, high: two of the values, between which the true median lies with ``confidence``.
        confidence: at least 0.95 from six values on; with fewer, that of their range: 0.9375 for five, 0.75
            for three, 0 for one.
    """

    median: float
    low: float
    high: float
    confidence: float


def median_interval(values: Sequence[float]) -> Interval:
    """The narrowest interval between two of the sorted values, as far from both ends, at 95%.

    It assumes of the values only that they are independent: each of n values is below the true median with
    probability 1/2, so that the k-th from below and from above enclose it with probability
    1 - 2 P(Binomial(n, 1/2) < k).

    Args:
        values: one or more.
    """
    ordered = sorted(values)
    count = len(ordered)
    best = 1
    for rank in range(1, (count + 1) // 2 + 1):
        if _coverage(count, rank) >= LEVEL:
            best = rank
    return Interval(
        statistics.median(ordered), ordered[best - 1], ordered[count - best], max(0.0, _coverage(count, best))
    )


def _coverage(count: int, rank: int) -> float:
    outside = sum(math.comb(count, below) for below in range(rank))
    return 1.0 - 2.0 * outside / float(2**count)
