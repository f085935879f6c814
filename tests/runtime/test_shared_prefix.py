"""Many sequences at once give what each of them gives alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bitexport.errors import UsageError
from bitexport.metrics.likelihood import token_losses
from bitexport.runtime.prefix_tree import Query
from bitexport.runtime.session import Session
from bitexport.runtime.shared_prefix import SharedPrefixSession

#: Differences of float32 sums whose terms have another order; activations are rounded to 8 bits in between.
TOLERANCE = 2e-3


@pytest.fixture(scope="module")
def file(gguf_of: Callable[..., Path]) -> Path:
    return gguf_of("packed-multiply")


@pytest.fixture(scope="module")
def session(file: Path) -> Iterator[SharedPrefixSession]:
    with SharedPrefixSession(file, n_threads=2) as opened:
        yield opened


def queries() -> list[Query]:
    """Twelve questions after the same examples, with three choices each, and some that share nothing."""
    rng = np.random.default_rng(0)
    examples = tuple(map(int, rng.integers(3, 400, 90)))
    made = []
    for _ in range(12):
        question = examples + tuple(map(int, rng.integers(3, 400, 20)))
        for length in (1, 3, 9):
            made.append(Query(question + tuple(map(int, rng.integers(3, 400, length))), len(question)))
    for length in (2, 30, 200):
        made.append(Query(tuple(map(int, rng.integers(3, 400, length))), 1))
    return made


def alone(file: Path, query: Query) -> tuple[np.ndarray, bool]:
    with Session(file, n_threads=2, n_ctx=256) as session:
        logits = session.logits(query.ids[:-1])
    wanted = np.asarray(query.ids[query.first :])
    greedy = bool((logits[query.first - 1 :].argmax(axis=1) == wanted).all())
    return -token_losses(np.vstack([logits, logits[:1]]), query.ids)[query.first - 1 :], greedy


def test_answers_equal_those_of_each_query_alone(file: Path, session: SharedPrefixSession) -> None:
    asked = queries()
    order = np.random.default_rng(1).permutation(len(asked))
    answers = session.answer([asked[at] for at in order])
    for at, answer in zip(order, answers, strict=True):
        logprobs, greedy = alone(file, asked[at])
        np.testing.assert_allclose(answer.logprobs, logprobs, atol=TOLERANCE)
        assert answer.greedy == greedy


@pytest.mark.parametrize("options", [{"share": False}, {"share": False, "slots": 1}, {"exact": False}])
def test_other_ways_to_evaluate_agree(
    file: Path, session: SharedPrefixSession, options: dict[str, bool | int]
) -> None:
    asked = queries()[:9]
    with SharedPrefixSession(file, n_threads=2, **options) as other:  # type: ignore[arg-type]
        found = other.answer(asked)
    tolerance = 0 if options.get("exact", True) else 0.05
    for answer, same in zip(session.answer(asked), found, strict=True):
        np.testing.assert_allclose(answer.logprobs, same.logprobs, atol=TOLERANCE, rtol=tolerance)


def test_greedy_text_equals_that_of_each_prompt_alone(file: Path, session: SharedPrefixSession) -> None:
    rng = np.random.default_rng(2)
    examples = list(map(int, rng.integers(3, 400, 40)))
    prompts = [examples + list(map(int, rng.integers(3, 400, count))) for count in (0, 5, 5, 9, 30)]
    prompts += [prompts[0], prompts[1], list(map(int, rng.integers(3, 400, 3)))]
    found = session.continue_greedily(prompts, 12, lambda ids: ids[-1] == 1)
    with Session(file, n_threads=2, n_ctx=256) as single:
        for prompt, answer in zip(prompts, found, strict=True):
            single.clear()
            new, expected = prompt, []
            while len(expected) < 12 and 1 not in expected:
                new = [int(single.feed(new).argmax())]
                expected += new
            assert answer == expected


def test_a_continuation_ends_where_it_is_told_to(session: SharedPrefixSession) -> None:
    found = session.continue_greedily([[5, 6, 7], [8, 9]], 20, lambda ids: len(ids) == 3)
    assert [len(answer) for answer in found] == [3, 3]


def test_nothing_is_asked(session: SharedPrefixSession) -> None:
    assert session.answer([]) == []
    assert session.continue_greedily([], 5, lambda _: False) == []


@pytest.mark.parametrize(
    "query", [Query((5, 6), 0), Query((5, 6), 2), Query((5, 99999), 1), Query((5, -1), 1)]
)
def test_impossible_queries_are_refused(session: SharedPrefixSession, query: Query) -> None:
    with pytest.raises(UsageError, match="expected"):
        session.answer([query])
