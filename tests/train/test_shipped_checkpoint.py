"""The checkpoint in examples/ matches its model card."""

from __future__ import annotations

import math
import re

import numpy as np

from bitexport.metrics.likelihood import token_losses, windows
from bitexport.reference import load_reference
from bitexport.text.stdlib import held_out_text
from tests.support.repository import TINY_PYTHON

FOLDER = TINY_PYTHON


def test_it_is_complete_and_small() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "README.md", "loss.png"} <= names
    assert {"tokenizer.json", "tokenizer_config.json", "train.toml"} <= names
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 6_000_000


def test_it_has_learned_python() -> None:
    """On held-out text of the Python that runs the tests; an untrained model has perplexity 4,096."""
    reference = load_reference(FOLDER)
    ids = reference.tokenize(held_out_text(max_bytes=100_000))[: 8 * 512]
    losses = np.concatenate([token_losses(reference.logits(part), part) for part in windows(ids, 512)])
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    card = re.search(r"held-out perplexity \| \*\*([\d.]+)\*\*", text)
    assert card
    assert math.exp(losses.mean()) < 2 * float(card[1])
