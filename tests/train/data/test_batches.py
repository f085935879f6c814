"""Which examples every step sees: each once per pass, within the limit of tokens, repeatably."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bitexport.errors import UsageError
from bitexport.train.data.batches import BatchPlan, collate, sample_batches
from bitexport.train.data.examples import ListedExamples


def listed(count: int = 40, seed: int = 0) -> ListedExamples:
    """Examples of 2 to 9 tokens; the first token is the number of the example."""
    lengths = np.random.default_rng(seed).integers(2, 10, count)
    return ListedExamples([([i, *[99] * (length - 1)],) * 2 for i, length in enumerate(lengths)])


def plan(examples: ListedExamples | None = None, **changes: Any) -> BatchPlan:
    sizes = {"micro_tokens": 32, "per_step": 2, "budget": 500, "seed": 3, "pad_id": 0}
    return BatchPlan(listed() if examples is None else examples, **(sizes | changes))


def test_collate_pads_on_the_right() -> None:
    examples = [(np.array([1, 2, 3]), np.array([-100, 2, 3])), (np.array([4]), np.array([4]))]
    batch = collate(examples, pad_id=9)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_every_pass_sees_every_example_once() -> None:
    found = plan(budget=10_000)
    by_pass: dict[int, list[int]] = {}
    for pass_number, indices, _ in found.batches:
        by_pass.setdefault(pass_number, []).extend(indices.tolist())
    assert len(by_pass) > 2
    complete = [by_pass[number] for number in sorted(by_pass)[:-1]]  # the last may be cut off
    assert all(sorted(order) == list(range(40)) for order in complete)
    assert complete[0] != complete[1]


def test_micro_batches_fit_with_padding() -> None:
    found = plan()
    assert all(found[i]["input_ids"].numel() <= 32 for i in range(len(found)))


def test_the_budget_is_reached_and_the_last_step_is_full() -> None:
    found = plan()
    assert len(found) == 2 * found.steps
    tokens = [int(found[i]["attention_mask"].sum()) for i in range(len(found))]
    assert found.tokens_after.tolist() == [sum(tokens[: 2 * step]) for step in range(found.steps + 1)]
    assert found.tokens_after[-2] < 500 <= found.tokens_after[-1]


def test_a_plan_depends_on_the_seed_alone() -> None:
    def ids(found: BatchPlan) -> list[list[list[int]]]:
        return [found[i]["input_ids"].tolist() for i in range(len(found))]

    assert ids(plan()) == ids(plan())
    assert ids(plan()) != ids(plan(seed=4))


def test_no_example_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no example is left for training; give more"):
        plan(ListedExamples([]))


def test_sampled_batches_are_spread_and_sorted_by_length() -> None:
    batches = sample_batches(listed(), 32, 10, pad_id=0)
    chosen = [int(row[0]) for batch in batches for row in batch["input_ids"]]
    lengths = [int(row.sum()) for batch in batches for row in batch["attention_mask"]]
    assert len(chosen) == 10
    assert {0, 39} <= set(chosen)
    assert lengths == sorted(lengths)
    assert all(batch["input_ids"].numel() <= 32 for batch in batches)
    assert sample_batches(ListedExamples([]), 32, 10, pad_id=0) == []
