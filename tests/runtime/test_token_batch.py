"""What libllama reads of a batch that is filled again and again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bitexport.runtime.library import api
from bitexport.runtime.token_batch import TokenBatch


@pytest.fixture
def batch() -> Iterator[TokenBatch]:
    made = TokenBatch(api(), 8)
    yield made
    made.free()
    made.free()


def seen(raw: Any) -> list[tuple[int, int, int, int, int]]:
    """Token, position, number of sequences, sequence, and whether there are to be logits."""
    return [
        (raw.token[i], raw.pos[i], raw.n_seq_id[i], raw.seq_id[i][0], raw.logits[i])
        for i in range(raw.n_tokens)
    ]


def test_consecutive_tokens(batch: TokenBatch) -> None:
    assert seen(batch.fill([5, 6, 7], 10, [0, 2])) == [(5, 10, 1, 0, 1), (6, 11, 1, 0, 0), (7, 12, 1, 0, 1)]
    assert seen(batch.fill([8, 9], 3, slice(-1, None))) == [(8, 3, 1, 0, 0), (9, 4, 1, 0, 1)]
    assert seen(batch.fill(range(2), 0, slice(None))) == [(0, 0, 1, 0, 1), (1, 1, 1, 0, 1)]


def test_sequences_together_leave_nothing_behind(batch: TokenBatch) -> None:
    assert seen(batch.fill_together([5, 6, 7], 4)) == [(5, 4, 1, 0, 1), (6, 4, 1, 1, 1), (7, 4, 1, 2, 1)]
    batch.fill_together([1], 5)
    assert [row[3] for row in seen(batch.fill([5, 6, 7], 0, slice(None)))] == [0, 0, 0]
