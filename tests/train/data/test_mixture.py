"""Sources with weights: what a run sees of each."""

from __future__ import annotations

import numpy as np
import pytest

from bitexport.errors import UsageError
from bitexport.train.data.batches import BatchPlan
from bitexport.train.data.examples import MixedExamples, WindowedExamples
from bitexport.train.data.mixture import Mixture, parse_mixture


def test_weights_are_parts_of_a_whole() -> None:
    assert parse_mixture(["text:a", "hub:b/c"]) == Mixture(("text:a", "hub:b/c"), None)
    assert parse_mixture(["text:a @ 3", "hub:b/c:train:x @ 1"]) == Mixture(
        ("text:a", "hub:b/c:train:x"), (0.75, 0.25)
    )
    assert parse_mixture(["text:/data/me@home"]).specs == ("text:/data/me@home",)


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (["text:a @ 3", "text:b"], "'text:b' has no weight, others have; give every source one"),
        (["text:a @ 0"], "weight 0; expected a number above 0"),
        (["text:a @ much"], "weight much; expected a number above 0"),
        (["text:a @ nan"], "weight nan; expected a number above 0"),
    ],
)
def test_bad_weights(sources: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_mixture(sources)


def mixed(weights: tuple[float, float] = (0.7, 0.3)) -> MixedExamples:
    """Windows of two sources: 900 of the first (tokens below 10,000), 60 of the second."""
    first = WindowedExamples(np.arange(9000), 10)
    second = WindowedExamples(np.arange(10_000, 10_600), 10)
    return MixedExamples([first, second], weights)


def test_every_pass_continues_where_the_last_one_ended() -> None:
    """The second source is the scarce one: a pass sees all of it, and 140 of the first."""
    examples = mixed()
    passes = [examples.order(5, number) for number in range(8)]
    for order in passes:
        assert sorted(order[order >= 900].tolist()) == list(range(900, 960))
        assert (order < 900).sum() == 140
    of_first = np.concatenate([order[order < 900] for order in passes])
    assert sorted(of_first[:900].tolist()) == list(range(900))  # all once before any twice
    assert passes[0][passes[0] >= 900].tolist() != passes[1][passes[1] >= 900].tolist()
    assert examples.order(5, 3).tolist() == passes[3].tolist()


@pytest.mark.parametrize("weights", [(0.7, 0.3), (0.1, 0.9), (0.999, 0.001)])
def test_a_run_sees_tokens_by_weight(weights: tuple[float, float]) -> None:
    plan = BatchPlan(mixed(weights), micro_tokens=100, per_step=1, budget=200_000, seed=1, pad_id=0)
    tokens = np.concatenate([plan[number]["input_ids"].flatten() for number in range(len(plan))])
    assert (tokens >= 10_000).mean() == pytest.approx(weights[1], abs=0.01)
    assert plan[7]["input_ids"].tolist() == plan[7]["input_ids"].tolist()


def test_batches_mix_the_sources() -> None:
    plan = BatchPlan(mixed((0.5, 0.5)), micro_tokens=100, per_step=1, budget=1000, seed=1, pad_id=0)
    kinds = [{bool(token >= 10_000) for token in plan[number]["input_ids"].flatten()} for number in range(5)]
    assert {True, False} in kinds
