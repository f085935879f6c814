"""Block decoding in C++ is that of PyTorch: every pass, every decision, every text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

from bitexport.blocks import BlockRule
from bitexport.convert import convert
from bitexport.gguf.embeddings import read_embeddings
from bitexport.parity import parity
from bitexport.parity.blocks import compare_blocks
from bitexport.reference import load_reference
from bitexport.runtime.block_session import BlockSession
from tests.support.diffusion import as_block_diffusion
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
    assert "greedy decoding in blocks: 4 tokens" in " ".join(shown.stdout.split())
    found = json.loads(run_cli("parity", folder, gguf, "--prompt", PROMPTS[1], "--json").stdout)
    assert found["blocks"]["same_decisions"] == 1
    assert found["blocks"]["agreement"]["cosine_min"] > 0.9999


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
