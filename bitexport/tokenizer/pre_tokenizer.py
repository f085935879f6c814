"""Finds llama.cpp's name for a tokenizer's pre-tokenizer: the rule by which text is split before the merges.

A wrong name gives wrong tokens, and without a name llama.cpp uses its default, which almost no model was
trained with. So the name is determined in this order, and never assumed:

1. the user's choice (``--pre-tokenizer``);
2. llama.cpp's own table, from the hash of the token ids of its check text; the build installs it next to our
   libraries;
3. the structure of tokenizer.json, compared with the rules that llama.cpp implements;
4. the behaviour, in case a regular expression is written differently: the rule that splits every hard string
   in the same way.
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

#: Regular expressions in tokenizer.json files, by the name of the model that introduced them.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class SplitRule:
    """A pre-tokenizer that llama.cpp implements.

    Attributes:
        steps: the steps before the byte encoding: ``"digits"``, ``"gpt2"``, or a regular expression.
        ignore_merges: whether a word that is itself a token is encoded as that token, without merges.
    """

    steps: tuple[str, ...]
    ignore_merges: bool

    def build(self) -> Any:
        """The same steps as a pre-tokenizer of the tokenizers library."""
        steps: list[Any] = []
        for step in self.steps:
            if step == "digits":
                steps.append(pre_tokenizers.Digits(individual_digits=True))
            elif step != "gpt2":
                steps.append(pre_tokenizers.Split(Regex(step), "isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex="gpt2" in self.steps))
        return pre_tokenizers.Sequence(steps)


#: llama.cpp's name for each rule.
SPLIT_RULES: Mapping[SplitRule, str] = {
    SplitRule(("gpt2",), False): "gpt-2",
    SplitRule(("digits", "gpt2"), False): "smollm",
    SplitRule((LLAMA3_SPLIT,), True): "llama-bpe",
    SplitRule((LLAMA3_SPLIT,), False): "smaug-bpe",
    SplitRule((QWEN2_SPLIT,), False): "qwen2",
}


def name_of(tokenizer: Tokenizer, description: Mapping[str, Any], given: str | None) -> str:
    """llama.cpp's name for the pre-tokenizer of a byte-level BPE tokenizer.

    Args:
        tokenizer: the tokenizer.
        description: its tokenizer.json.
        given: the user's choice, which is returned as is; the tokenizer check after writing tests it.

    Raises:
        TokenizerError: none of llama.cpp's known rules is equivalent.
    """
    if given is not None:
        return given
    if (name := _by_hash(tokenizer)) is not None:
        return name
    rule = _rule_of(description)
    if rule is not None and rule in SPLIT_RULES:
        return SPLIT_RULES[rule]
    if rule is not None and (name := _by_behaviour(tokenizer, rule)) is not None:
        return name
    steps = (
        "no known steps"
        if rule is None
        else f"{' then '.join(rule.steps)}, ignore_merges {rule.ignore_merges}"
    )
    raise TokenizerError(
        f"the pre-tokenizer of tokenizer.json is unknown ({steps}); give llama.cpp's name for it with "
        f"--pre-tokenizer, such as {', '.join(sorted(SPLIT_RULES.values()))}"
    )


def _by_behaviour(tokenizer: Tokenizer, described: SplitRule) -> str | None:
    """The name of a rule that splits every hard string as this tokenizer does.

    A regular expression can be written in many ways. The check of the written file also compares the tokens.
    """
    texts = (*HARD_STRINGS, *STRANGE_STRINGS)
    expected = [tokenizer.pre_tokenizer.pre_tokenize_str(text) for text in texts]
    for rule, name in SPLIT_RULES.items():
        if rule.ignore_merges == described.ignore_merges:
            built = rule.build()
            if all(built.pre_tokenize_str(text) == e for text, e in zip(texts, expected, strict=True)):
                return name
    return None


def _by_hash(tokenizer: Tokenizer) -> str | None:
    text = recognition_text()
    return None if text is None else name_of_ids(tokenizer.encode(text).ids)


def recognition_text() -> str | None:
    """The text by whose ids llama.cpp recognises tokenizers; None if the native libraries are not built."""
    table = _table()
    return None if table is None else str(table["check_text"])


def name_of_ids(ids: list[int]) -> str | None:
    """The pre-tokenizer of the tokenizer that encodes the check text as ``ids``; None if unknown."""
    table = _table()
    found = table["hashes"].get(sha256(str(ids).encode()).hexdigest()) if table else None
    return str(found) if found is not None else None


def _table() -> dict[str, Any] | None:
    """llama.cpp's table as our build installed it; None if the native libraries are not built."""
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
        raise TokenizerError(
            f"{path} is damaged; expected check_text and hashes: build the native libraries again"
        )
    return table


def _rule_of(description: Mapping[str, Any]) -> SplitRule | None:
    """The pre-tokenizer of tokenizer.json as a rule; None if it has a step that no :class:`SplitRule` has."""
    top = description.get("pre_tokenizer") or {}
    entries = top.get("pretokenizers", []) if top.get("type") == "Sequence" else [top]
    steps: list[str] = []
    byte_level = False
    for entry in entries:
        kind = entry.get("type")
        if byte_level:
            return None
        if kind == "ByteLevel" and not entry.get("add_prefix_space"):
            byte_level = True
            if entry.get("use_regex", True):
                steps.append("gpt2")
        elif kind == "Digits" and entry.get("individual_digits"):
            steps.append("digits")
        elif kind == "Split" and entry.get("behavior") == "Isolated" and not entry.get("invert"):
            pattern = entry.get("pattern", {})
            if "Regex" not in pattern:
                return None
            steps.append(str(pattern["Regex"]))
        else:
            return None
    if not byte_level:
        return None
    return SplitRule(tuple(steps), bool(description.get("model", {}).get("ignore_merges")))
