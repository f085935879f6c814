"""The machine's limits: plausible values, and a correct measure of change."""

from __future__ import annotations

import pytest

from bitexport.bench.limits import Limit, LimitMeter


def test_limits_are_plausible() -> None:
    limit = LimitMeter().measure(threads=2, passes=2)
    # The range of the last twenty years' machines; above 2 TB/s, something was not really read.
    assert 0.3 < limit.memory_gbps < 2000
    assert limit.multiply_add_gps is None or 1 < limit.multiply_add_gps < 100_000


def test_change_is_the_larger_of_both_speeds() -> None:
    assert Limit(10, 100).change(Limit(12, 100)) == pytest.approx(0.2)
    assert Limit(12, 100).change(Limit(12, 50)) == pytest.approx(1.0)
    assert Limit(12, None).change(Limit(12, 50)) == 0


def test_best_takes_the_higher_of_each_speed() -> None:
    assert Limit(10, 100).best(Limit(12, 90)) == Limit(12, 100)
    assert Limit(10, None).best(Limit(12, None)) == Limit(12, None)
