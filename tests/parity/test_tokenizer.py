"""``parity --tokenizer-only`` passes on files that convert writes, and names the texts that differ."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from bitexport.convert import convert
from bitexport.errors import GGUFError, TokenizerError, UsageError
from bitexport.parity.tokenizer import tokenizer_parity
from bitexport.tokenizer.hard_strings import strings
from tests.support.damaged_checkpoints import edited
from tests.support.gguf_files import with_text
from tests.support.tiny_models import tiny_checkpoint

Maker = Callable[..., Path]
Cli = Callable[..., "CompletedProcess[str]"]
KINDS = {
    "gpt2": ("gpt2", "gpt-2"),
    "smollm": ("gpt2", "smollm"),
    "llama3": ("gpt2", "llama-bpe"),
    "qwen2": ("gpt2", "qwen2"),
    "llama2": ("llama", "default"),
}


def test_the_strings() -> None:
    """There are enough of them, always the same, and a normalizer changes none of them."""
    found = strings(["<tool>"])
    assert found == strings(["<tool>"])
    assert len(found) > 450
    assert all(unicodedata.is_normalized("NFC", text) for text in found)
    together = "".join(found)
    for wanted in (
        "\x00",
        "\x1b",
        "\r\n",
        "\u200d",
        "\u202e",
        "👩‍👩‍👧‍👦",
        "नमस्ते",
        "a" * 1000,
        " " * 1000,
        "a<tool>b",
    ):
        assert wanted in together


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokenizer(checkpoint_of: Maker, gguf_of: Maker, kind: str) -> None:
    prompts = ["The quick brown fox", "def f(x):\n\treturn x  # 1234567"]
    report = tokenizer_parity(checkpoint_of(tokenizer=kind), gguf_of(tokenizer=kind), prompts)
    assert report.passed, report.describe()
    assert (report.model, report.pre) == KINDS[kind]
    assert report.prompts == 2
    assert report.strings > 450
    assert report.tokens > 10_000


@pytest.mark.parametrize(
    ("kind", "other", "text"),
    [
        ("llama3", "gpt-2", "\n\n"),
        ("qwen2", "gpt-2", "\n\n"),
        ("gpt2", "qwen2", "'RE"),
        ("llama3", "qwen2", "1234"),
    ],
)
def test_a_swapped_pre_tokenizer(
    checkpoint_of: Maker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    other: str,
    text: str | None,
) -> None:
    # convert itself would refuse
    monkeypatch.setattr("bitexport.convert.tokenizer_check.verify_tokenizer", lambda *_: None)
    convert(checkpoint_of(tokenizer=kind), tmp_path / "x.gguf", embed_type="f16", pre_tokenizer=other)
    report = tokenizer_parity(checkpoint_of(tokenizer=kind), tmp_path / "x.gguf")
    assert not report.passed
    assert report.pre == other
    first = report.mismatches[0]
    assert [token.id for token in first.python] != [token.id for token in first.cpp]
    assert first.python[first.at - first.begin].id != first.cpp[first.at - first.begin].id
    assert first.python[: first.at - first.begin] == first.cpp[: first.at - first.begin]
    assert "if necessary with another --pre-tokenizer" in report.describe()
    assert text is None or any(text in mismatch.text for mismatch in report.mismatches)


def with_llama_tokenizer(checkpoint: Path, folder: Path) -> Path:
    """A copy of the checkpoint that transformers opens with its class LlamaTokenizer."""
    edited(checkpoint, folder, lambda _: None)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**settings, "tokenizer_class": "LlamaTokenizer"})
    )
    return folder


def test_where_transformers_does_not_follow_the_file(
    checkpoint_of: Maker, gguf_of: Maker, tmp_path: Path
) -> None:
    """LlamaTokenizer in transformers 5 treats leading spaces differently from tokenizer.json."""
    folder = with_llama_tokenizer(checkpoint_of(tokenizer="llama2"), tmp_path / "model")
    report = tokenizer_parity(folder, gguf_of(tokenizer="llama2"), [" leading space"])
    assert report.mismatches[0].what == "prompt 1"
    assert all(mismatch.file_agrees and mismatch.harmless for mismatch in report.mismatches)
    assert report.passed
    assert "which is harmless: transformers 5 leaves out the space" in report.describe()


def test_a_real_difference_is_not_called_harmless(
    checkpoint_of: Maker, gguf_of: Maker, tmp_path: Path
) -> None:
    """The same folder, and a file that adds no space in front of a text."""
    folder = with_llama_tokenizer(checkpoint_of(tokenizer="llama2"), tmp_path / "model")
    bad = tmp_path / "bad.gguf"
    source = gguf_of(tokenizer="llama2").read_bytes()
    key = b"tokenizer.ggml.add_space_prefix" + (7).to_bytes(4, "little")
    assert source.count(key + b"\x01") == 1
    bad.write_bytes(source.replace(key + b"\x01", key + b"\x00"))
    report = tokenizer_parity(folder, bad, ["no leading space"])
    assert not report.passed
    assert report.mismatches[0].what == "prompt 1"
    assert "convert the checkpoint again" in report.describe()


def test_a_text_that_is_normalized(checkpoint_of: Maker, gguf_of: Maker, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    edited(checkpoint_of(), folder, lambda _: None)
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**content, "normalizer": {"type": "NFC"}}))
    report = tokenizer_parity(folder, gguf_of(), ["cafe\u0301"])
    assert [mismatch.what for mismatch in report.mismatches] == ["prompt 1"]
    assert "the text is not in NFC" in report.describe()


def test_other_vocabularies_and_files(checkpoint_of: Maker, gguf_of: Maker, tmp_path: Path) -> None:
    report = tokenizer_parity(checkpoint_of(tokenizer="llama2"), gguf_of())
    assert not report.passed
    with pytest.raises(GGUFError, match="no such file"):
        tokenizer_parity(checkpoint_of(), tmp_path / "none.gguf")
    with pytest.raises(TokenizerError, match="cannot load its tokenizer"):
        tokenizer_parity(tiny_checkpoint(tmp_path / "bare", tokenizer=None), gguf_of())
    with pytest.raises(UsageError, match="prompt 1"):
        tokenizer_parity(checkpoint_of(), gguf_of(), ["half a \ud83d"])


def test_the_command(checkpoint_of: Maker, gguf_of: Maker, tmp_path: Path, run_cli: Cli) -> None:
    (tmp_path / "prompts.txt").write_text("the first\nit's 1234 o'clock\n")
    bad = with_text(gguf_of(), tmp_path / "bad.gguf", "tokenizer.ggml.pre", "qwen2")
    options = ("--tokenizer-only", "--prompts", tmp_path / "prompts.txt")
    good = run_cli("parity", checkpoint_of(), gguf_of(), *options)
    assert good.returncode == 0, good.stderr
    assert good.stdout.startswith("PASS: C++ tokenizes as Python does")
    done = run_cli("parity", checkpoint_of(), bad, *options)
    assert done.returncode == 3
    assert done.stdout.startswith("prompt 2: \"it's 1234 o'clock\"\n")
    assert "differs first" in done.stdout
    assert "the first is prompt 2" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    document = json.loads(run_cli("parity", checkpoint_of(), bad, *options, "--json").stdout)
    assert document["passed"] is False
    assert document["mismatches"][0]["text"] == "it's 1234 o'clock"
    wrong = run_cli("parity", checkpoint_of(), bad, "--tokenizer-only", "--layers")
    assert wrong.returncode == 2
    assert "--tokenizer-only runs no model" in wrong.stderr
