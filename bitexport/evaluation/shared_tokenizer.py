"""Checks that all sides share one tokenizer; otherwise figures per token are not comparable."""

from __future__ import annotations

from collections.abc import Sequence

from bitexport.errors import UsageError
from bitexport.evaluation.items import Encode
from bitexport.evaluation.side import Side
from bitexport.tokenizer.compare import first_difference


def shared_encode(sides: Sequence[Side]) -> Encode:
    """An encode that raises UsageError if the sides differ on a text, or an id is not in a vocabulary."""

    def encode(text: str, special: bool) -> list[int]:
        first, *others = sides
        ids = first.encode(text, special)
        for other in others:
            if (found := other.encode(text, special)) != ids:
                raise _different(first, other, text, ids, found)
        smallest = min(sides, key=lambda side: side.n_vocab)
        if ids and max(ids) >= smallest.n_vocab:
            raise UsageError(
                f"the tokenizer produces id {max(ids)} for {_excerpt(text)}, but {smallest.name} has "
                f"{smallest.n_vocab} tokens; expected the model's own tokenizer"
            )
        return ids

    return encode


def shared_end_token(sides: Sequence[Side]) -> int:
    """The token that ends an answer; raises UsageError if the sides differ, or one has none."""
    first = sides[0]
    for side in sides:
        if side.end is None or not 0 <= side.end < side.n_vocab:
            raise UsageError(
                f"{side.path}: the tokenizer has no end-of-text token that the model knows, and answers must "
                "end with one; set eos_token in tokenizer_config.json"
            )
        if side.end != first.end:
            raise UsageError(
                f"answers end with token {first.end} for {first.name} but {side.end} for {side.name}; "
                "expected one tokenizer for both: evaluate them separately"
            )
    assert first.end is not None
    return first.end


def _different(one: Side, other: Side, text: str, ids: list[int], found: list[int]) -> UsageError:
    at = first_difference(ids, found)
    advice = (
        "see `bitexport parity --tokenizer-only`" if one.role == other.role else "evaluate them separately"
    )
    return UsageError(
        f"{one.name} and {other.name} tokenize {_excerpt(text)} differently from token {at + 1} on: "
        f"{ids[at : at + 3]} and {found[at : at + 3]}; figures per token are only comparable with one "
        f"tokenizer: {advice}"
    )


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
