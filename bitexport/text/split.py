"""Splits records into two sides, training and held out, that have no text in common."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from bitexport.errors import UsageError
from bitexport.text import stdlib
from bitexport.text.sources import Document, Record, texts_of


@dataclass(frozen=True)
class Split:
    """The two sides, each ordered by hash, so that any beginning of a side is a fair sample of it."""

    train: list[Record]
    held_out: list[Record]
    duplicates: int  # dropped: equal to another record
    too_close: int  # dropped from held_out: shares a key with the training side


def split(records: Iterable[Record], held_out_percent: int, labels: bool = False) -> Split:
    """Split the records so that no key (see :func:`keys_of`) is on both sides.

    The hash of a record's first key, or of a document's name, decides its side, identically on every machine;
    then held-out records that share a key with the training side are dropped.

    Args:
        labels: answers are labels, which recur; only prompts must not be on both sides.

    Raises:
        UsageError: a side is empty.
    """
    every = list(records)
    keys = {record: keys_of(record, labels) for record in every}
    ordered = sorted(keys, key=lambda record: hashlib.sha256(repr(record).encode()).digest())
    chosen = {record for record in ordered if key_sides(record, held_out_percent)[0]}
    train = [record for record in ordered if record not in chosen]
    seen = {key for record in train for key in keys[record]}
    held_out = [record for record in ordered if record in chosen and seen.isdisjoint(keys[record])]
    if not train or not held_out:
        raise empty_side(len(train), len(held_out), held_out_percent, len(chosen) > 0 and not labels)
    return Split(train, held_out, len(every) - len(ordered), len(chosen) - len(held_out))


def empty_side(train: int, held_out: int, percent: int, shared: bool) -> UsageError:
    """The error for a split with nothing on one side.

    Args:
        shared: whether records were dropped because they have a text in common with training.
    """
    found = f"{train:,} records for training, {held_out:,} held out ({percent} percent)"
    advice = "give more data or another percentage"
    if shared and not held_out:
        advice += (
            "; if answers recur because they are labels, set answers_are_labels, and give `eval` the run's "
            "held_out.jsonl with --pairs"
        )
    return UsageError(f"data: {found}; expected some on both sides; {advice}")


def side_of(
    record: Record, held_out_percent: int, labels: bool = False
) -> Literal["train", "held_out"] | None:
    """The side of one record of a stream, decided without the others; None: drop it.

    All keys of a record must agree. No document is dropped; of pairs, only percent^2 / 100 percent are held
    out, and about twice the percentage is dropped.
    """
    sides = set(key_sides(record, held_out_percent, labels))
    return None if len(sides) == 2 else "held_out" if True in sides else "train"


def key_sides(record: Record, percent: int, labels: bool = False) -> tuple[bool, ...]:
    """For each key of a record, whether it would be held out; a named document is decided by its name.

    The first one decides in :func:`split`; a named document has only one.
    """
    if isinstance(record, Document) and record.name:
        return (stdlib.is_held_out(PurePosixPath(record.name), percent),)
    return tuple(would_hold_out(hash_of(key), percent) for key in keys_of(record, labels))


def hash_of(key: str) -> int:
    """64 bits of a key's SHA-256."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def would_hold_out(key_hash: Any, percent: int) -> Any:
    """Whether a text whose key has this hash would be held out; for an integer or a NumPy array of them."""
    # Any other formula would be another split, and the models in examples/ were trained on this one.
    return key_hash % 10_000 < percent * 100


def keys_of(record: Record, labels: bool = False) -> tuple[str, ...]:
    """Keys that must not occur on both sides: those of the prompt and of the answer, or of the text.

    Args:
        labels: answers are labels and have no key.
    """
    texts = texts_of(record)
    return tuple(key_of(text) for text in (texts[:1] if labels else texts))


_SPECIFIER = re.compile(
    r"%(?:\d+\$|\(\w+\))?[-+#0' ]*[\d.*]*(?:hh|ll|[hlLqjzt])?[diouxXeEfFgGaAcCsSpnmr]|\{[^{}\s]{0,40}\}|%\d+"
)
_MNEMONIC = re.compile(r"\([_&]\w\)|[_&]")
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~«»¡¿،؛؟\u2000-\u206f\u3000-\u303f]+")


def key_of(text: str) -> str:
    """The text without insignificant differences.

    These are case, white space, punctuation, mnemonics of menus (``_`` and ``&``), the values of numbers, and
    the kinds of format specifiers.
    """
    text = _SPECIFIER.sub("0", unicodedata.normalize("NFKC", text))
    text = _NUMBER.sub("0", _MNEMONIC.sub("", text).casefold())
    return " ".join(_PUNCTUATION.sub(" ", text).split())
