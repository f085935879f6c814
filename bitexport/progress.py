"""Progress reports from a long-running driver to its caller, independent of how they are displayed."""

from __future__ import annotations

import time
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


def patient(progress: Progress, seconds: float = 2.0) -> Progress:
    """A :data:`Progress` that passes on what is reported after ``seconds``: most work is done by then."""
    started = time.monotonic()

    def report(event: ProgressEvent) -> None:
        if time.monotonic() - started > seconds:
            progress(event)

    return report
