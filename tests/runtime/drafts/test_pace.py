"""How many drafted tokens a pass gets, with times and tokens that are made up."""

from __future__ import annotations

import pytest

from bitexport.runtime.drafts import pace as module
from bitexport.runtime.drafts.pace import Pace

PLAIN = 0.001  # seconds
EACH = 0.2  # plain passes, for each token more


LEVELS = 7  # of trust, as drafts from the text have


def played(pace: Pace, passes: int, right: bool) -> float:
    """What drafts of 8 tokens gain, in plain passes, if all are right or all are wrong."""
    gained = 0.0
    for number in range(passes):
        trusts = [number % LEVELS] * 8
        count = pace.worth(trusts)
        if not count:
            pace.add_pass(1, PLAIN)
            continue
        good = count if right else 0
        pace.add_pass(1 + count, PLAIN * (1 + EACH * count), trusts[:count], good)
        gained += good - EACH * count
    return gained


def test_drafts_that_are_always_wrong_cost_little() -> None:
    """Although a text is assumed to become better after a while."""
    assert -25 <= played(Pace([0.95] * LEVELS), 2000, right=False) < 0


def test_the_bound_is_what_holds_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CREDIT", 1e9)
    monkeypatch.setattr(module, "_MOST_CREDIT", 1e9)
    assert played(Pace([0.95] * LEVELS), 2000, right=False) < -60


def test_drafts_that_are_right_are_taken_again_after_wrong_ones() -> None:
    pace = Pace([0.9] * LEVELS)
    played(pace, 500, right=False)
    assert played(pace, 1500, right=True) > 3000


def test_one_disturbed_pass_does_not_end_drafts() -> None:
    pace = Pace([0.9] * LEVELS)
    played(pace, 50, right=True)
    pace.add_pass(9, 1000 * PLAIN, [0] * 8, 8)
    assert played(pace, 100, right=True) > 200
