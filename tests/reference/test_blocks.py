"""PyTorch's side of block decoding, against whole forward passes without a cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitexport.errors import UsageError
from bitexport.reference import load_reference
from bitexport.reference.blocks import BlockReference
from tests.support import slow_diffusion
from tests.support.diffusion import as_block_diffusion

Maker = Callable[..., Path]


@pytest.mark.parametrize("architecture", ["bitnet", "qwen3-student"])
def test_blocks_after_a_cache_are_those_of_a_whole_pass(
    checkpoint_of: Maker, tmp_path: Path, architecture: str
) -> None:
    reference = load_reference(as_block_diffusion(checkpoint_of(architecture=architecture), tmp_path / "c"))
    blocks = BlockReference(reference)
    ids = np.random.default_rng(0).integers(3, 390, 11).tolist()
    blocks.evaluate(ids[:4], [3], keep=True)
    blocks.evaluate([7, 7, 7, 7], [0], keep=False)  # is forgotten
    found = [
        blocks.evaluate(ids[4:8], range(4), keep=True),
        blocks.evaluate(ids[8:], [0, 2], keep=False),
    ]
    expected = slow_diffusion.logits_of(reference.model, ids, 4).numpy()
    for logits, rows in zip(found, ([4, 5, 6, 7], [8, 10]), strict=True):
        cosine = (logits * expected[rows]).sum(-1) / np.linalg.norm(logits, axis=-1)
        assert (cosine / np.linalg.norm(expected[rows], axis=-1)).min() > 0.9999
    causal = reference.logits(ids)
    assert not np.allclose(causal[4], expected[4], atol=1e-3)  # what plain decoding would compute


def test_a_plain_checkpoint_is_refused(checkpoint_of: Maker) -> None:
    with pytest.raises(UsageError, match="is a plain model; expected one of block diffusion"):
        BlockReference(load_reference(checkpoint_of()))
