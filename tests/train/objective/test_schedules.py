from __future__ import annotations

import itertools
import math

import pytest

from bitexport.errors import UsageError
from bitexport.train.objective.schedules import CURRICULUM, curriculum_factor, ramp


@pytest.mark.parametrize(("shape", "quarter"), [("linear", 0.25), ("cosine", (1 - math.sqrt(0.5)) / 2)])
def test_a_ramp_rises_once_and_ends_exactly(shape: str, quarter: float) -> None:
    values = [ramp(step, 100, shape) for step in range(120)]
    assert values[0] == 0.0
    assert values[25] == pytest.approx(quarter)
    assert values[50] == pytest.approx(0.5)
    assert all(a < b for a, b in itertools.pairwise(values[:101]))
    assert values[100:] == [1.0] * 20
    assert ramp(0, 0, shape) == 1.0


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'stairs'.*linear or cosine"):
        ramp(1, 10, "stairs")


@pytest.mark.parametrize(
    ("term", "weights"),
    [  # at 0, 10, 25, 40, 50, 55, 70, 85 and 100% of a run
        ("next_token", [1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("relation", [1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("logits", [1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("feature", [0, 0, 0.5, 1, 1, 1, 1, 1, 1]),
        ("attention", [0, 0, 0.5, 1, 1, 1, 1, 1, 1]),
        ("contrastive", [0, 0, 0, 0, 0, 0, 0, 0.5, 1]),
    ],
)
def test_the_curriculum_has_the_documented_ramps(term: str, weights: list[float]) -> None:
    progress = [0, 0.1, 0.25, 0.4, 0.5, 0.55, 0.7, 0.85, 1]
    assert [curriculum_factor(term, p) for p in progress] == pytest.approx(weights)
    assert curriculum_factor(term, 1.2) == 1.0


def test_an_unknown_term_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'atention'.*next_token"):
        curriculum_factor("atention", 0.5)
    assert len(CURRICULUM) == 6
