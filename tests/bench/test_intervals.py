"""The interval around a median has the true one as often as it says."""

from __future__ import annotations

import random

import pytest

from bitexport.bench.intervals import median_interval


@pytest.mark.parametrize(
    ("count", "low", "high", "confidence"),
    [
        (1, 0, 0, 0.0),
        (2, 0, 1, 0.5),
        (3, 0, 2, 0.75),
        (5, 0, 4, 0.9375),
        (6, 0, 5, 0.96875),
        (12, 2, 9, 0.9614),
    ],
)
def test_known_intervals(count: int, low: int, high: int, confidence: float) -> None:
    values = list(range(count))
    random.Random(count).shuffle(values)
    found = median_interval(values)
    assert (found.low, found.high) == (low, high)
    assert found.confidence == pytest.approx(confidence, abs=1e-4)
    assert found.median == (count - 1) / 2


@pytest.mark.parametrize("count", [3, 5, 9, 20])
def test_as_often_as_it_says(count: int) -> None:
    draw = random.Random(count)
    trials = 4000
    hits = 0
    for _ in range(trials):
        # skewed, with the median 1
        found = median_interval([2.0 ** draw.gauss(0, 1) ** 3 for _ in range(count)])
        hits += found.low <= 1 <= found.high
    assert hits / trials == pytest.approx(found.confidence, abs=0.025)
