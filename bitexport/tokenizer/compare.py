"""Token ids of the two sides: llama.cpp's, and where two lists of ids first differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_cpp import Llama


def encode(model: Llama, text: str, add_special: bool) -> list[int]:
    """llama.cpp's ids of ``text``, in which special tokens are recognised.

    Args:
        add_special: put the tokenizer's special tokens around the text.
    """
    return list(model.tokenize(text.encode("utf-8"), add_bos=add_special, special=True))


def first_difference(expected: Sequence[int], found: Sequence[int]) -> int:
    """The first index at which two lists of ids differ.

    If one list is the beginning of the other, this is the length of the shorter one.
    """
    pairs = zip(expected, found, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(found)))
