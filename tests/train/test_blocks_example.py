"""examples/en-fr/blocks.py: its table, its held-out texts, and the model that its training starts from."""

from __future__ import annotations

import runpy
import string
from typing import Any

import pytest

from bitexport.text import Pair
from bitexport.text.split import keys_of, split
from bitexport.train import load_config
from bitexport.train.models import load_models
from tests.support.repository import EN_FR


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(EN_FR / "blocks.py"))


def test_the_table_compares_with_the_first_way(script: dict[str, Any]) -> None:
    answer = script["Answer"]
    plain = [answer("bon", True, 2, 2, 1.0)] * 5
    blocks = [answer("bon", True, 4, 2, 1.0), *[answer("mal", True, 2, 2, 2.0)] * 4]
    lines = script["table"]({"plain": plain, "blocks": blocks}, ["bon"] * 5).splitlines()
    assert lines[2].endswith("| 10 | 1.00 | 2 tokens/s |")
    # 12 tokens in 9 seconds beside 2 per second
    assert lines[3].endswith("| 12 | 1.20 | 0.67 (0.50 to 2.00) |")


def test_held_out_texts_are_not_those_of_training(
    script: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [Pair(f"{word} the file", f"{word} le fichier") for word in string.ascii_lowercase]
    pairs += [Pair(f"{a}{b} is missing", f"{a}{b} manque") for a in "abcdefgh" for b in "klmnopqr"]
    monkeypatch.setitem(script["held_out"].__globals__, "read_sources", lambda _specs: pairs)
    found = script["held_out"](2)
    assert 0 < len(found) <= 2
    sides = split(pairs, 3)
    trained = {key for record in sides.train for key in keys_of(record)}
    for record, pair in zip(sides.held_out, found, strict=False):
        assert pair.prompt == f"<|en|>{record.source}<|fr|>"
        assert trained.isdisjoint(keys_of(record))


def test_training_starts_from_the_shipped_student() -> None:
    config = load_config(EN_FR / "block.toml", student=str(EN_FR))
    models = load_models(config, "3")
    assert models.teacher is None
    assert models.student.config.block_diffusion["mask_token_id"] == 4096
    assert models.tokenizer.mask_token == "<|mask|>"
