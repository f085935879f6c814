"""How a long-running driver tells its caller how far it is, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """One step of a driver.

    Attributes:
        done: units finished so far.
        total: units in all; 0 while it is unknown.
        unit: what is counted: ``"B"`` for bytes, otherwise a plural noun such as ``"prompts"``.
        label: what is being worked on now, a few words.
    """

    done: int
    total: int
    unit: str
    label: str


Progress = Callable[[ProgressEvent], None]


def ignore(_event: ProgressEvent) -> None:
    """The listener of a caller who does not care."""
