"""The check of every conversion that llama.cpp tokenizes as tokenizer.json does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bitexport.convert import convert
from bitexport.errors import TokenizerError
from tests.support.template_bombs import BROKEN, MEMORY, TIME
from tests.support.tiny_models import tiny_checkpoint
from tests.support.tokenizer_files import EOS, edit, settings, template


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("gpt2", "gpt-2"),
        ("smollm", "smollm"),
        ("qwen2", "qwen2"),
        ("llama3", "llama-bpe"),
        ("smaug", "smaug-bpe"),
    ],
)
def test_llama_cpp_tokenizes_in_the_same_way(tmp_path: Path, kind: str, name: str) -> None:
    folder = tiny_checkpoint(tmp_path / "c", tokenizer=kind)
    report = convert(folder, tmp_path / "x.gguf", embed_type="f16")
    assert report.warnings == []
    assert report.pre_tokenizer == name


def test_llama_cpp_adds_the_same_ends(tmp_path: Path) -> None:
    """The check of the conversion passes, with a template and a tokenizer_config.json that disagree."""
    folder = tiny_checkpoint(tmp_path / "c")
    for file, change in (template("$A", EOS), settings(add_bos_token=True, add_eos_token=False)):
        edit(folder, change, file)
    assert len(convert(folder, tmp_path / "x.gguf", embed_type="f16").warnings) == 2


def test_the_check_is_independent_of_the_vocabulary(
    tmp_path: Path, checkpoint_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitexport.tokenizer.vocabulary._added_ends", lambda *_: (False, False))
    with pytest.raises(
        TokenizerError, match=r"adds other special tokens to a text: \[(\d+)\] .* gives \[0, \1\]"
    ):
        convert(checkpoint_of(), tmp_path / "x.gguf", embed_type="f16")


def test_a_name_that_llama_cpp_lacks(tmp_path: Path, checkpoint_of: Callable[..., Path]) -> None:
    with pytest.raises(
        TokenizerError,
        match=r"refuses the vocabulary.*unknown pre-tokenizer type: 'nonsense'.*--pre-tokenizer",
    ) as caught:
        convert(checkpoint_of(), tmp_path / "x.gguf", embed_type="f16", pre_tokenizer="nonsense")
    assert "\n" not in str(caught.value)
    assert ".tmp" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_pre_tokenizer_names_the_string(tmp_path: Path, checkpoint_of: Callable[..., Path]) -> None:
    with pytest.raises(TokenizerError, match=r"llama.cpp tokenizes '.*' differently.*pre-tokenizer 'qwen2'"):
        convert(checkpoint_of(), tmp_path / "x.gguf", embed_type="f16", pre_tokenizer="qwen2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.content }}{% end %}", "chat template is damaged"),
        (BROKEN["is nested more than 100 levels deep"][0], "chat template is nested more than 100 levels"),
        (MEMORY["text"], "chat template needs more than 1024 MiB of memory"),
        (TIME["loops"], "chat template takes more than 5 s"),
        ([{"name": "loud", "template": MEMORY["list"]}], "chat template 'loud' needs more than 1024 MiB"),
    ],
)
def test_a_chat_template_that_cannot_be_used(
    checkpoint_of: Callable[..., Path], tmp_path: Path, template: object, message: str
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint_of("packed-multiply"), folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(TokenizerError, match=message):
        convert(folder, tmp_path / "out.gguf", embed_type="f16")
    assert not (tmp_path / "out.gguf").exists()
