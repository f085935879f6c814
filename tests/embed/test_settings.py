"""How convert learns the pooling, the normalization and the prompts of an embedding model."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import pytest

from bitexport.checkpoint.sentence_transformers import EmbeddingSettings, read_sentence_transformers
from bitexport.cli import convert as convert_command
from bitexport.cli import embed as embed_command
from bitexport.convert import convert as convert_any
from bitexport.embed import embed
from bitexport.errors import BitexportError, CheckpointError, UnsupportedError, UsageError
from bitexport.gguf.embedding_settings import POOLING_TYPES, settings_of
from bitexport.gguf.reader import read_gguf
from tests.support.embedding_models import PROMPTS, embedding_checkpoint, write_sentence_transformers

Edit = Callable[[Path], object]

#: Rows of 128 are too short for the default type of embeddings, as those of bitnet-embeddings-270m (640) are.
convert = partial(convert_any, embed_type="q8_0")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_file_says_what_sentence_transformers_says(tmp_path: Path) -> None:
    checkpoint = embedding_checkpoint(tmp_path / "c", pooling="mean_tokens", normalize=False)
    edit(checkpoint / "config_sentence_transformers.json", default_prompt_name="query")
    report = convert(checkpoint, tmp_path / "m.gguf")
    expected = EmbeddingSettings("mean", False, PROMPTS, "query")
    file = read_gguf(tmp_path / "m.gguf")
    assert settings_of(file) == report.embedding == expected
    assert file.metadata["bitnet-b1.58.pooling_type"] == 1
    found = embed(tmp_path / "m.gguf", ["text"])
    assert (found.prompt, found.normalized) == (PROMPTS["query"], False)
    convert_any(tmp_path / "m.gguf", tmp_path / "again.gguf")
    assert settings_of(read_gguf(tmp_path / "again.gguf")) == expected


def test_without_its_files_the_documented_pooling_is_announced(tmp_path: Path) -> None:
    checkpoint = embedding_checkpoint(tmp_path / "c", pooling=None)
    report = convert(checkpoint, tmp_path / "m.gguf")
    assert report.embedding == EmbeddingSettings("last")
    assert any("no modules.json" in warning and "--pooling" in warning for warning in report.warnings)
    report = convert(checkpoint, tmp_path / "mean.gguf", pooling="mean")
    assert report.embedding == EmbeddingSettings("mean")
    assert report.warnings == []


def test_any_other_embedding_model_must_say_how_it_pools(tmp_path: Path) -> None:
    checkpoint = embedding_checkpoint(tmp_path / "c", pooling=None, input_norms=False)
    with pytest.raises(CheckpointError, match=r"how it pools; choose it with --pooling mean \| cls \| last"):
        convert(checkpoint, tmp_path / "m.gguf")
    assert convert(checkpoint, tmp_path / "m.gguf", pooling="cls").embedding == EmbeddingSettings("cls")


def test_a_pooling_that_is_not_supported_can_be_replaced(tmp_path: Path) -> None:
    checkpoint = embedding_checkpoint(tmp_path / "c", pooling="max_tokens")
    with pytest.raises(UnsupportedError, match=r"pooling_mode_max_tokens; expected one of .*--pooling"):
        convert(checkpoint, tmp_path / "m.gguf")
    report = convert(checkpoint, tmp_path / "m.gguf", pooling="last")
    assert report.embedding == EmbeddingSettings("last", True, PROMPTS)
    with pytest.raises(UsageError, match="pooling 'max' is unknown"):
        convert(checkpoint, tmp_path / "m.gguf", pooling="max", force=True)
    with pytest.raises(UsageError, match="--pooling is for a checkpoint"):
        convert_any(tmp_path / "m.gguf", tmp_path / "n.gguf", pooling="last")


def test_the_newer_key_for_the_pooling(tmp_path: Path) -> None:
    write_sentence_transformers(tmp_path, "lasttoken")
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "lasttoken"}')
    assert read_sentence_transformers(tmp_path) == EmbeddingSettings("last", True, PROMPTS)


def test_the_options_offer_every_pooling() -> None:
    assert get_args(convert_command.Pooling) == get_args(embed_command.Pooling) == tuple(POOLING_TYPES)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "modules.json").write_text("{"), "modules.json: "),
        (lambda path: (path / "modules.json").write_text("[1]"), "expected a list of modules"),
        (lambda path: (path / "modules.json").write_text("[]"), "no Pooling; expected one: choose it with"),
        (
            lambda path: (path / "modules.json").write_text(
                '[{"type": "sentence_transformers.models.Dense"}]'
            ),
            "models.Dense', which would be lost",
        ),
        (lambda path: (path / "1_Pooling" / "config.json").unlink(), "1_Pooling/config.json is missing"),
        (
            lambda path: edit(path / "1_Pooling" / "config.json", pooling_mode_cls_token=True),
            "expected one of",
        ),
        (lambda path: edit(path / "1_Pooling" / "config.json", include_prompt=False), "include_prompt false"),
        (
            lambda path: edit(path / "config_sentence_transformers.json", prompts=["x"]),
            "expected texts by name",
        ),
        (
            lambda path: edit(path / "config_sentence_transformers.json", default_prompt_name="x"),
            "expected null or one of the prompts, query, document",
        ),
    ],
)
def test_damaged_files(tmp_path: Path, damage: Edit, message: str) -> None:
    write_sentence_transformers(tmp_path, "mean_tokens")
    damage(tmp_path)
    with pytest.raises(BitexportError, match=message):
        read_sentence_transformers(tmp_path)
