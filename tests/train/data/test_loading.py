"""From sources to examples: packed windows, or prompts with answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitexport.errors import UsageError
from bitexport.train.data.bpe import train_tokenizer
from bitexport.train.data.examples import CachedExamples, WindowedExamples
from bitexport.train.data.loading import StageData, load_data, template_of
from tests.train.conftest import WORDS, tiny_config


def load(folder: Path, name: str, **changes: Any) -> StageData:
    config = tiny_config(folder, **changes)
    texts = [*WORDS, *WORDS.values(), "number numéro"]
    tokenizer = train_tokenizer(texts, 260, 64, ["<|en|>", "<|fr|>"])
    return load_data(config.data, config, template_of(config, name), tokenizer, 1000)


def test_plain_packs_both_sides_into_windows(tmp_path: Path) -> None:
    data = load(tmp_path, "plain")
    assert isinstance(data.train, WindowedExamples)
    assert isinstance(data.held_out, WindowedExamples)
    assert data.train.seed == 0
    assert data.held_out.seed is None  # the same windows in every evaluation
    assert data.held_out_pairs() == []
    assert data.summary.startswith("data: 200 records, ")
    assert "; left out: 0 equal to another, 0 too close to training" in data.summary


def test_with_a_prompt_only_the_answer_is_counted(tmp_path: Path) -> None:
    data = load(tmp_path, "tags", sequence_length=128)
    assert isinstance(data.train, CachedExamples)
    assert len(data.held_out.lengths) == len(data.held_out_pairs()) == 40
    ids, labels = data.train.get(0, 0)
    prompt = int((labels == -100).sum())
    assert 0 < prompt < len(ids)
    assert (labels[:prompt] == -100).all()
    assert (labels[prompt:] == ids[prompt:]).all()


def test_records_that_are_too_long_are_counted(tmp_path: Path) -> None:
    data = load(tmp_path, "tags", sequence_length=72)
    left_out = 200 - len(data.train.lengths)
    assert left_out > 0
    assert f", {left_out} of training longer than 72 tokens, " in data.summary
    assert data.train.lengths.max() <= 72


def test_too_little_text_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no record fits into sequence_length = 4 tokens; raise it"):
        load(tmp_path, "tags", sequence_length=4)
    with pytest.raises(UsageError, match=r"held out; expected at least 8,000 tokens each; shorten"):
        load(tmp_path, "plain", sequence_length=4000, micro_batch_tokens=4000, batch_tokens=4000)
