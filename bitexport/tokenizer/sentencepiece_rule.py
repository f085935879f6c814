"""Tokenizers like SentencePiece's in tokenizer.json: llama.cpp's kind ``llama``.

SentencePiece puts a space in front of every text, and writes spaces as U+2581. tokenizer.json says so
with a normalizer (Prepend, Replace), and so does llama.cpp, to which what follows a special token is a new
text. transformers 5 replaces the normalizer by the pre-tokenizer Metaspace when it loads and saves the
tokenizer of a Llama. Metaspace puts no space in front of a text that begins with one, and none after a
special token: a few texts get one token less. The rule of the original tokenizer is the normalizer's.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import gguf
from tokenizers import Tokenizer

from bitexport.tokenizer.panic import panics_named

#: The score of tokens that are not the result of a merge.
UNMERGED_SCORE = -1000000.0

#: How SentencePiece writes a space.
SPACE = "\u2581"

#: The difference between the two rules, as a clause.
SPACES_DIFFER = (
    "transformers 5 leaves out the space that SentencePiece puts in front of a text that begins with a "
    "space, and of what follows a special token"
)


def is_like_sentencepiece(description: Mapping[str, Any]) -> bool:
    """Whether tokenizer.json describes BPE with byte fallback."""
    model = description.get("model")
    return isinstance(model, dict) and model.get("type") == "BPE" and bool(model.get("byte_fallback"))


def saved_again(description: Mapping[str, Any]) -> bool:
    """Whether tokenizer.json has Metaspace where the original had the normalizer."""
    splitter = description.get("pre_tokenizer")
    return (
        is_like_sentencepiece(description)
        and isinstance(splitter, dict)
        and splitter.get("type") == "Metaspace"
        and splitter.get("prepend_scheme", "always") != "never"
        and splitter.get("replacement", SPACE) == SPACE
        and not splitter.get("split", True)
        and description.get("normalizer") in (None, {"type": "Sequence", "normalizers": []})
    )


@panics_named()
def original_tokenizer(description: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that tokenizer.json describes, with the normalizer if it was :func:`saved_again`."""
    content = copy.copy(dict(description))
    if saved_again(description):
        content["pre_tokenizer"] = None
        content["normalizer"] = {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        }
    tokenizer = Tokenizer.from_str(json.dumps(content))
    # settings saved by a training run, which transformers ignores as well
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def merge_scores(tokens: Sequence[str], merges: Sequence[str]) -> list[float]:
    """The score of each token; llama.cpp merges the pair whose result has the best score first."""
    rank: dict[str, int] = {}
    for index, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", ""), index)
    return [-float(rank[token]) if token in rank else UNMERGED_SCORE for token in tokens]


def byte_types(tokens: Sequence[str], types: Sequence[int], unknown: int | None) -> list[int]:
    """``types``, with those of the byte tokens and of the unknown token."""
    found = list(types)
    byte_tokens = {f"<0x{value:02X}>" for value in range(256)}
    for number, token in enumerate(tokens):
        if token in byte_tokens:
            found[number] = int(gguf.TokenType.BYTE)
    if unknown is not None:
        found[unknown] = int(gguf.TokenType.UNKNOWN)
    return found


def space_prefix(description: Mapping[str, Any]) -> bool:
    """Whether a tokenizer adds a space in front of the text."""

    def steps(part: Any, key: str) -> list[Mapping[str, Any]]:
        if not isinstance(part, dict):
            return []
        return list(part.get(key, [])) if part.get("type") == "Sequence" else [part]

    normalizers = steps(description.get("normalizer"), "normalizers")
    splitters = steps(description.get("pre_tokenizer"), "pretokenizers")
    prepended = any(step.get("type") == "Prepend" for step in normalizers)
    metaspace = any(
        step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never"
        for step in splitters
    )
    return prepended or metaspace
