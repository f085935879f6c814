"""The checkpoint in examples/, from conversion to perplexity: the claims that README makes about it."""

from __future__ import annotations

import pytest

from bitexport.convert import convert
from bitexport.parity import parity
from bitexport.parity.report import ParityReport
from bitexport.text.stdlib import held_out_text
from tests.support.repository import TINY_PYTHON

CHECKPOINT = TINY_PYTHON
HELD_OUT_BYTES = 30_000


def run(tmp_path_factory: pytest.TempPathFactory, embed_type: str, tokens: int) -> ParityReport:
    gguf = tmp_path_factory.mktemp("shipped") / f"{embed_type}.gguf"
    convert(CHECKPOINT, gguf, embed_type=embed_type)
    text = held_out_text(max_bytes=HELD_OUT_BYTES)
    return parity(CHECKPOINT, gguf, tokens=tokens, text=text)


@pytest.fixture(scope="module")
def float16_head(tmp_path_factory: pytest.TempPathFactory) -> ParityReport:
    return run(tmp_path_factory, "f16", 128)


@pytest.fixture(scope="module")
def q6_k_head(tmp_path_factory: pytest.TempPathFactory) -> ParityReport:
    return run(tmp_path_factory, "q6_k", 0)


def test_enough_was_compared(float16_head: ParityReport) -> None:
    assert len(float16_head.prompts) >= 20
    assert float16_head.plain.positions >= 2000


def test_logits_agree_with_a_float16_head(float16_head: ParityReport) -> None:
    assert float16_head.aligned is not None
    assert float16_head.aligned.unexplained == 0
    assert float16_head.aligned.agreement.cosine_min >= 0.999999
    assert float16_head.plain.cosine_min >= 0.9999


def test_logits_agree_with_a_q6_k_head(q6_k_head: ParityReport) -> None:
    assert q6_k_head.aligned is not None
    assert q6_k_head.aligned.unexplained == 0
    assert q6_k_head.aligned.agreement.cosine_min >= 0.9999


def test_greedy_continuations_are_the_same(float16_head: ParityReport) -> None:
    continuations = [result.continuation for result in float16_head.prompts]
    assert all(continuation is not None for continuation in continuations)
    divergences = [c.divergence for c in continuations if c is not None and c.divergence is not None]
    assert len(divergences) <= 1
    assert all(divergence.near_tie for divergence in divergences)


def test_perplexity_agrees(float16_head: ParityReport) -> None:
    assert float16_head.perplexity is not None
    assert float16_head.perplexity.tokens > 5_000
    assert float16_head.perplexity.relative_difference <= 0.001
    assert float16_head.perplexity.python < 100, "the shipped model should be better than that"


def test_small_enough_to_ship() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.rglob("*")) <= 6_000_000
