"""Greedy decoding with either side of parity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitexport.reference import Reference
    from bitexport.runtime.session import Session


def greedy(model: Reference | Session, ids: Sequence[int], count: int) -> list[int]:
    """The ``count`` most likely tokens after ``ids``, one by one; it does not stop at an end of text."""
    model.clear()
    continuation: list[int] = []
    following: Sequence[int] = ids
    for _ in range(count):
        following = [int(model.feed(following).argmax())]
        continuation += following
    return continuation
