"""The names of pre-tokenizers: given, from llama.cpp's table, by structure, and by behaviour."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from bitexport.convert import convert
from bitexport.errors import TokenizerError
from bitexport.tokenizer.pre_tokenizer import LLAMA3_SPLIT, QWEN2_SPLIT, SPLIT_RULES, SplitRule, name_of
from bitexport.tokenizer.vocabulary import read_vocabulary
from tests.support.tiny_models import tiny_checkpoint, tiny_tokenizer
from tests.support.tokenizer_files import edit


@pytest.mark.parametrize(
    ("steps", "ignore_merges", "name"),
    [
        ([("gpt2",)], False, "gpt-2"),
        ([("digits",), ("gpt2",)], False, "smollm"),
        ([("split", LLAMA3_SPLIT), ("bytes",)], True, "llama-bpe"),
        ([("split", LLAMA3_SPLIT), ("bytes",)], False, "smaug-bpe"),
        ([("split", QWEN2_SPLIT), ("bytes",)], False, "qwen2"),
    ],
)
def test_names_by_structure(steps: list[tuple[str, ...]], ignore_merges: bool, name: str) -> None:
    parts = {
        "gpt2": lambda: {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "bytes": lambda: {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        "digits": lambda: {"type": "Digits", "individual_digits": True},
        "split": lambda regex: {
            "type": "Split",
            "pattern": {"Regex": regex},
            "behavior": "Isolated",
            "invert": False,
        },
    }
    described = [parts[step[0]](*step[1:]) for step in steps]
    description = {
        "model": {"ignore_merges": ignore_merges},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": described}
        if len(described) > 1
        else described[0],
    }
    assert name_of(tiny_tokenizer(), description, None) == name


@pytest.mark.parametrize(
    ("kind", "digits", "name"), [("llama3", "{1,3}", "llama-bpe"), ("qwen2", "", "qwen2")]
)
def test_another_spelling_of_a_known_rule(tmp_path: Path, kind: str, digits: str, name: str) -> None:
    """As tiktoken writes it, with possessive quantifiers; a similar but different rule is still unknown."""
    spelling = (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}"
        + digits
        + r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    )
    folder = tiny_checkpoint(tmp_path / "c", tokenizer=kind)

    def respell(to: str) -> Callable[[dict[str, Any]], object]:
        return lambda t: t["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=to)

    edit(folder, respell(spelling))
    assert convert(folder, tmp_path / "x.gguf", embed_type="f16").pre_tokenizer == name
    with pytest.raises(TokenizerError, match=r"pre-tokenizer of tokenizer\.json is unknown"):
        read_vocabulary(edit(folder, respell(spelling.replace(r"\p{L}+", r"\p{L}"))), 512)


def test_the_choice_of_the_user_has_priority() -> None:
    assert name_of(tiny_tokenizer(), {}, "viking") == "viking"


def test_the_names_of_rules_are_unique() -> None:
    assert len(set(SPLIT_RULES.values())) == len(SPLIT_RULES)
    assert all(isinstance(rule, SplitRule) for rule in SPLIT_RULES)


def test_the_table_of_llama_cpp_has_priority(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The table knows the same tokenizer by another name than its structure suggests."""
    ids = tiny_tokenizer().encode("check 1234").ids
    table = {"check_text": "check 1234", "hashes": {sha256(str(ids).encode()).hexdigest(): "falcon3"}}
    (tmp_path / "pre_tokenizers.json").write_text(json.dumps(table))
    monkeypatch.setattr("bitexport.tokenizer.pre_tokenizer.find_library_dir", lambda: tmp_path)
    assert name_of(tiny_tokenizer(), {}, None) == "falcon3"
