"""Progress reports from a long-running driver to its caller, independent of how they are displayed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """One progress update.

    Attributes:
        done: units finished so far.
        total: units in total; 0 while unknown.
        unit: the unit: ``"B"`` for bytes, otherwise a plural noun such as ``"prompts"``.
        label: the current item, in a few words.
    """

    done: int
    total: int
    unit: str
    label: str


#: A function that is called with each update.
Progress = Callable[[ProgressEvent], None]


def ignore(_event: ProgressEvent) -> None:
    """A :data:`Progress` that does nothing."""
