"""Block decoding in C++ is that of PyTorch: every pass, every decision, every text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

from bitexport.blocks import BlockDecoding, BlockRule
from bitexport.convert import convert
from bitexport.errors import UsageError
from bitexport.gguf.embeddings import read_embeddings
from bitexport.parity import parity
from bitexport.parity.aligned import stored_weights
from bitexport.parity.blocks import _Lockstep, compare_blocks
from bitexport.reference import load_reference
from bitexport.runtime.block_session import BlockSession
from tests.support.diffusion import MASK, as_block_diffusion
from tests.support.tiny_models import Shape

Maker = Callable[..., Path]
PROMPTS = ["def", "def add(left, right):\n", "The quick brown fox jumps over the lazy dog."]


def model_of(checkpoint: Path, folder: Path, **settings: object) -> tuple[Path, Path]:
    made = as_block_diffusion(checkpoint, folder / "c", **settings)
    convert(made, folder / "c.gguf", embed_type="f16")
    return made, folder / "c.gguf"


@pytest.mark.parametrize(
    ("architecture", "rule", "shift"),
    [
        ("bitnet", BlockRule("greedy"), True),
        ("qwen3-student", BlockRule("confidence", 0.02), True),
        ("llama-student", BlockRule("confidence", 0.02), False),
    ],
)
def test_every_pass_agrees(
    checkpoint_of: Maker, tmp_path: Path, architecture: str, rule: BlockRule, shift: bool
) -> None:
    folder, gguf = model_of(checkpoint_of(architecture=architecture), tmp_path, token_shift=shift)
    reference = load_reference(folder)
    ids_of = [reference.tokenize(prompt) for prompt in PROMPTS]
    assert {len(ids) % 4 == 0 for ids in ids_of} | {len(ids) > 4 for ids in ids_of} == {True, False}
    with BlockSession(gguf, n_ctx=64) as session:
        found = compare_blocks(reference, session, read_embeddings(gguf), ids_of, 10, rule)
    assert found.passed(0.9999), found.describe()
    assert found.tokens == 30
    assert found.identical == 1
    if rule.name == "greedy":
        blocks_of_prompts = sum(len(ids) // 4 for ids in ids_of)
        assert found.passes >= blocks_of_prompts + 30 - len(PROMPTS) * 3
    else:
        assert found.passes < 30


def test_a_prompt_longer_than_a_batch(checkpoint_of: Maker, tmp_path: Path) -> None:
    """libllama evaluates 512 tokens at once; no block of this prompt's is longer than 48."""
    checkpoint = checkpoint_of(shape=Shape(context=1024))
    folder, gguf = model_of(checkpoint, tmp_path, block_size=48)
    reference = load_reference(folder)
    ids = reference.tokenize(PROMPTS[1] * 60)
    assert 512 < len(ids) < 1000
    with BlockSession(gguf, n_ctx=1024) as session:
        found = compare_blocks(
            reference, session, read_embeddings(gguf), [ids], 8, BlockRule("confidence", 0.02)
        )
    assert found.passed(0.9999), found.describe()
    assert found.tokens == 8


def test_the_command_compares_blocks_by_itself(
    checkpoint_of: Maker, tmp_path: Path, run_cli: Callable[..., CompletedProcess[str]]
) -> None:
    folder, gguf = model_of(checkpoint_of(), tmp_path)
    shown = run_cli("parity", folder, gguf, "--prompt", PROMPTS[1], "--tokens", "4")
    assert shown.returncode == 0, shown.stderr
    assert "greedy decoding in blocks: 4 tokens behind 1 prompt" in " ".join(shown.stdout.split())
    found = json.loads(run_cli("parity", folder, gguf, "--prompt", PROMPTS[1], "--json").stdout)
    assert found["blocks"]["same_decisions"] == 1
    assert found["blocks"]["agreement"]["cosine_min"] > 0.9999


def test_the_rule_sees_what_decoding_sees(
    checkpoint_of: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides of the lockstep get the pass and the settled tokens that the loop of decoding has."""
    folder, gguf = model_of(checkpoint_of(), tmp_path)
    reference = load_reference(folder)
    seen: list[tuple[list[bool], int]] = []
    above = BlockRule.above

    def recorded(self: BlockRule, sure: np.ndarray, after_settled: np.ndarray, step: int) -> np.ndarray:
        seen.append((after_settled.tolist(), step))
        return above(self, sure, after_settled, step)

    monkeypatch.setattr(BlockRule, "above", recorded)
    rule = BlockRule("adaptive", 0.999)
    ids = reference.tokenize(PROMPTS[1])
    ids = ids[: len(ids) // 4 * 4 + 1]  # no whole block is kept but the prompt's
    with BlockSession(gguf, n_ctx=64) as session:
        both = _Lockstep(reference, session, stored_weights(reference, gguf), rule)
        settings = session.diffusion
        assert len(list(BlockDecoding(both, ids, settings, rule=rule, max_tokens=3, n_ctx=64))) == 3
    passes = seen[2 * (len(ids) // 4) :]
    assert len(passes) == 9  # two sides, then the loop
    assert {step for _, step in passes} == {0, 1, 2}
    for at in range(0, len(passes), 3):
        assert passes[at] == passes[at + 1] == passes[at + 2]


def test_the_first_token_of_a_block_is_compared(
    checkpoint_of: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes from the pass that keeps the block before it: here its two likeliest tokens change places."""
    folder, gguf = model_of(checkpoint_of(), tmp_path)
    evaluate = BlockSession.evaluate

    def swapped(self: BlockSession, ids: Any, rows: Any, *, keep: bool) -> np.ndarray:
        logits = evaluate(self, ids, rows, keep=keep)
        if keep:
            without = logits[-1].copy()
            without[MASK] = -np.inf
            second, first = np.argsort(without)[-2:]
            logits[-1, [first, second]] = logits[-1, [second, first]]
        return logits

    reference = load_reference(folder)
    ids_of = [reference.tokenize(PROMPTS[1])]
    rule = BlockRule("greedy")
    shares = []
    for change in (False, True):
        if change:
            monkeypatch.setattr(BlockSession, "evaluate", swapped)
        with BlockSession(gguf, n_ctx=64) as session:
            found = compare_blocks(reference, session, read_embeddings(gguf), ids_of, 10, rule)
        shares.append(found.same_decisions)
    assert shares[0] == 1
    assert shares[1] < 1


def test_prompts_that_fill_the_context_are_left_out(checkpoint_of: Maker, tmp_path: Path) -> None:
    folder, gguf = model_of(checkpoint_of(), tmp_path)
    reference = load_reference(folder)
    text = "x y " * 600
    full = next(text[:n] for n in range(1, len(text)) if len(reference.tokenize(text[:n])) == reference.n_ctx)
    report = parity(folder, gguf, [full, PROMPTS[0]])
    assert report.passed
    assert report.blocks is not None
    assert (report.blocks.prompts, report.blocks.tokens) == (1, 4)
    with pytest.raises(UsageError, match="every prompt fills the model's context of 256 tokens"):
        parity(folder, gguf, [full])


def test_a_causal_mask_does_not_pass(
    checkpoint_of: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a runtime without attention in both directions computes."""
    folder, gguf = model_of(checkpoint_of(), tmp_path)
    evaluate = BlockSession.evaluate

    def causal(self: BlockSession, *arguments: Any, **options: Any) -> np.ndarray:
        self._api.llama_set_causal_attn(self._context, True)
        return evaluate(self, *arguments, **options)

    monkeypatch.setattr(BlockSession, "evaluate", causal)
    report = parity(folder, gguf, [PROMPTS[1]])
    assert not report.passed
    assert report.judged.cosine_min > 0.9999  # plain decoding agrees
    assert report.blocks is not None
    assert report.blocks.agreement.cosine_min < 0.9999
