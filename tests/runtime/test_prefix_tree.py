"""Plans of batches, executed by a model whose predictions are the tokens before them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitexport.runtime.prefix_tree import Planner, Query, common


def execute(queries: list[Query], **options: bool | int) -> tuple[dict[int, list[tuple[int, ...]]], int]:
    """What is predicted for each query: the tokens up to each wanted one. And the number of nodes.

    Checks what llama.cpp needs: each slot's positions are consecutive, and slots with a token in common have
    the same tokens before it.
    """
    planner = Planner(**{"cells": 60, "room": 20, "slots": 4, **options})  # type: ignore[arg-type]
    found: dict[int, list[tuple[int, ...]]] = {index: [] for index in range(len(queries))}
    cache: dict[int, tuple[int, ...]] = {}
    nodes = 0
    answered: list[int] = []
    for batch in planner.batches(queries):
        before = cache.get(batch.source, ())
        assert all(kept <= len(before) for kept in batch.kept)
        cache = {slot: before[:kept] for slot, kept in enumerate(batch.kept)}
        for node in batch.nodes:
            texts = {cache[slot] for slot in node.slots}
            assert len(texts) == 1
            (text,) = texts
            assert node.position == len(text)
            for slot in node.slots:
                cache[slot] = (*text, node.token)
            for index, token in node.wanted:
                found[index].append((*text, node.token, token))
        assert batch.cells <= planner._cells
        assert len(batch.kept) <= planner._slots
        if planner._separate:
            slots = [slot for _, slot in batch.members]
            assert len(set(slots)) == len(slots)
            assert all(cache[slot] == queries[index].ids[:-1] for index, slot in batch.members)
        nodes += len(batch.nodes)
        answered += [index for index, _ in batch.members]
    assert sorted(answered) == list(range(len(queries)))
    return found, nodes


def expected(query: Query) -> list[tuple[int, ...]]:
    return [query.ids[: end + 1] for end in range(query.first, len(query.ids))]


@st.composite
def query_lists(draw: st.DrawFn) -> list[Query]:
    rng = random.Random(draw(st.integers(0, 10**6)))
    texts = [tuple(rng.choices((1, 2), k=rng.randint(2, 40))) for _ in range(rng.randint(1, 5))]
    queries = []
    for _ in range(draw(st.integers(1, 30))):
        text = rng.choice(texts)[: rng.randint(1, 40)] + tuple(rng.choices((1, 2, 3), k=rng.randint(1, 6)))
        queries.append(Query(text, rng.randint(1, len(text) - 1)))
    return queries


@given(query_lists(), st.booleans(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_every_token_is_predicted_from_those_before_it(
    queries: list[Query], share: bool, separate: bool
) -> None:
    found, _ = execute(queries, share=share, separate=separate)
    assert found == {index: expected(query) for index, query in enumerate(queries)}


def test_the_choices_of_a_question_share_it() -> None:
    question = tuple(range(10, 22))
    queries = [Query((*question, choice, 99), len(question)) for choice in (1, 2, 3)]
    assert execute(queries)[1] == len(question) + 3
    assert execute(queries, share=False)[1] == 3 * (len(question) + 1)


def test_choices_of_one_token_need_no_evaluation_of_their_own() -> None:
    question = tuple(range(10, 22))
    queries = [Query((*question, choice), len(question)) for choice in (1, 2, 3, 4)]
    found, nodes = execute(queries, slots=1)
    assert nodes == len(question)
    assert found[3] == [(*question, 4)]


def test_examples_are_kept_from_batch_to_batch() -> None:
    examples = tuple(range(100, 140))
    queries = [
        Query((*examples, *range(number, number + 8)), len(examples) + 4) for number in range(0, 60, 10)
    ]
    _, nodes = execute(queries, cells=60, room=8)
    assert nodes == len(examples) + len(queries) * 7


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [((), (1,), 0), ((1, 2), (1, 2, 3), 2), ((1, 2, 4), (1, 2, 3), 2), ((1,), (2,), 0)],
)
def test_common_beginnings(first: tuple[int, ...], second: tuple[int, ...], length: int) -> None:
    assert common(first, second) == length
