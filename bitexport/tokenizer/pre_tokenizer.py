"""The name that llama.cpp gives to a tokenizer's pre-tokenizer: how text is split before the merges.

A wrong name gives other tokens, and a missing one llama.cpp's default, which almost no model was trained
with. So the name is found in this order, and never assumed:

1. what the user says (``--pre-tokenizer``);
2. llama.cpp's own table: the hash of the token ids of its check text, installed beside our libraries at build
time;
3. the structure of tokenizer.json, compared with the splitting rules that llama.cpp implements;
4. the rule among them that splits every hard string alike, where a regular expression is spelled otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, pre_tokenizers

from bitexport.errors import BitexportError, TokenizerError
from bitexport.system.native_files import find_library_dir
from bitexport.tokenizer.hard_strings import HARD_STRINGS, STRANGE_STRINGS

#: The regular expressions of tokenizer.json files, by the name of the model that brought them.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class Split:
    """A way of splitting text that llama.cpp implements.

    Attributes:
        steps: the steps in front of the byte encoding: ``"digits"``, ``"gpt2"``, or a regular expression.
        ignore_merges: whether a word that is a token is taken whole, without its merges.
    """

    steps: tuple[str, ...]
    ignore_merges: bool


SPLITS: Mapping[Split, str] = {
    Split(("gpt2",), False): "gpt-2",
    Split(("digits", "gpt2"), False): "smollm",
    Split((LLAMA3_SPLIT,), True): "llama-bpe",
    Split((LLAMA3_SPLIT,), False): "smaug-bpe",
    Split((QWEN2_SPLIT,), False): "qwen2",
}


def name_of(tokenizer: Tokenizer, description: Mapping[str, Any], given: str | None) -> str:
    """The pre-tokenizer's name for a byte-level BPE tokenizer.

    Args:
        tokenizer: the tokenizer, for its ids of the check text.
        description: tokenizer.json.
        given: the user's answer, which is not questioned here: the check after writing is.

    Raises:
        TokenizerError: no rule of llama.cpp's is known to be this one.
    """
    if given is not None:
        return given
    if (name := _by_hash(tokenizer)) is not None:
        return name
    split = _structure(description)
    if split is not None and split in SPLITS:
        return SPLITS[split]
    if split is not None and (name := _by_behaviour(tokenizer, split)) is not None:
        return name
    seen = (
        "unlike any known"
        if split is None
        else f"{' then '.join(split.steps)}, ignore_merges {split.ignore_merges}"
    )
    raise TokenizerError(
        f"the pre-tokenizer of tokenizer.json is unknown ({seen}); give llama.cpp's name of it with "
        "--pre-tokenizer, "
        f"such as {', '.join(sorted(SPLITS.values()))}"
    )


def _by_behaviour(tokenizer: Tokenizer, found: Split) -> str | None:
    """A rule that splits every hard string as this tokenizer does: a regular expression has many spellings.

    The check of the written file compares the tokens as well.
    """
    texts = (*HARD_STRINGS, *STRANGE_STRINGS)
    expected = [tokenizer.pre_tokenizer.pre_tokenize_str(text) for text in texts]
    for split, name in SPLITS.items():
        if split.ignore_merges == found.ignore_merges:
            rule = _pre_tokenizer(split)
            if all(rule.pre_tokenize_str(text) == e for text, e in zip(texts, expected, strict=True)):
                return name
    return None


def _pre_tokenizer(split: Split) -> Any:
    """What tokenizer.json would describe by these steps."""
    parts: list[Any] = []
    for step in split.steps:
        if step == "digits":
            parts.append(pre_tokenizers.Digits(individual_digits=True))
        elif step != "gpt2":
            parts.append(pre_tokenizers.Split(Regex(step), "isolated"))
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex="gpt2" in split.steps))
    return pre_tokenizers.Sequence(parts)


def _by_hash(tokenizer: Tokenizer) -> str | None:
    text = check_text()
    return None if text is None else name_of_ids(tokenizer.encode(text).ids)


def check_text() -> str | None:
    """The text that llama.cpp knows tokenizers by; None where the native libraries are not built."""
    table = _table()
    return None if table is None else str(table["check_text"])


def name_of_ids(ids: list[int]) -> str | None:
    """The pre-tokenizer of the tokenizer that gives these ids for the check text; None when unknown."""
    table = _table()
    found = table["hashes"].get(sha256(str(ids).encode()).hexdigest()) if table else None
    return str(found) if found is not None else None


def _table() -> dict[str, Any] | None:
    """llama.cpp's table as our build installed it; None where the native libraries are not built."""
    try:
        path = Path(find_library_dir()) / "pre_tokenizers.json"
    except BitexportError:
        return None
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path} cannot be read ({error}); build the native libraries again") from error
    if not isinstance(table, dict) or not isinstance(table.get("hashes"), dict) or "check_text" not in table:
        raise TokenizerError(f"{path} is not the table it should be; build the native libraries again")
    return table


def _structure(description: Mapping[str, Any]) -> Split | None:
    """The steps of tokenizer.json's pre-tokenizer; None when :data:`SPLITS` speaks of no such step."""
    top = description.get("pre_tokenizer") or {}
    parts = top.get("pretokenizers", []) if top.get("type") == "Sequence" else [top]
    steps: list[str] = []
    byte_level = False
    for part in parts:
        kind = part.get("type")
        if byte_level:
            return None
        if kind == "ByteLevel" and not part.get("add_prefix_space"):
            byte_level = True
            if part.get("use_regex", True):
                steps.append("gpt2")
        elif kind == "Digits" and part.get("individual_digits"):
            steps.append("digits")
        elif kind == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
            pattern = part.get("pattern", {})
            if "Regex" not in pattern:
                return None
            steps.append(str(pattern["Regex"]))
        else:
            return None
    return (
        Split(tuple(steps), bool(description.get("model", {}).get("ignore_merges"))) if byte_level else None
    )
