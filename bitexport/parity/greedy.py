"""Greedy continuation of one text by two models in step, and what to make of it where they part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

#: Logits closer than this are a tie for all that rounding can tell: the two probabilities differ by a tenth.
NEAR_TIE = 0.1


class StepwiseModel(Protocol):
    """A model that is run step by step."""

    def clear(self) -> None:
        """Forget every position."""
        ...

    def feed(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Continue with ``ids``; the logits after the last of them, float32 ``[V]``."""
        ...


@dataclass(frozen=True, slots=True)
class Parting:
    """The first step at which two greedy continuations differ.

    Attributes:
        step: how many tokens they had in common.
        python_token, cpp_token: what each side chose.
        python_gap, cpp_gap: by how much each side preferred its own choice to the other's, in logits.
    """

    step: int
    python_token: int
    cpp_token: int
    python_gap: float
    cpp_gap: float

    @property
    def near_tie(self) -> bool:
        """Whether neither side preferred its choice by more than :data:`NEAR_TIE`."""
        return max(self.python_gap, self.cpp_gap) <= NEAR_TIE


@dataclass(frozen=True, slots=True)
class Continuation:
    """What both models wrote up to where they part, if they do."""

    tokens: list[int]
    parting: Parting | None


def continue_in_step(
    python: StepwiseModel, cpp: StepwiseModel, ids: Sequence[int], count: int
) -> Continuation:
    """Let both models choose the most likely token ``count`` times; stop where they choose differently.

    Neither stops at an end of text.
    """
    python.clear()
    cpp.clear()
    common: list[int] = []
    following: Sequence[int] = ids
    for step in range(count):
        ours, theirs = python.feed(following), cpp.feed(following)
        parting = _part(step, ours, theirs)
        if parting is not None:
            return Continuation(common, parting)
        following = [int(ours.argmax())]
        common += following
    return Continuation(common, None)


def compare_steps(
    python: Sequence[npt.NDArray[np.float32]], cpp: Sequence[npt.NDArray[np.float32]]
) -> Continuation:
    """What both sides chose, from their logits at each step of the same continuation."""
    common: list[int] = []
    for step, (ours, theirs) in enumerate(zip(python, cpp, strict=False)):
        parting = _part(step, ours, theirs)
        if parting is not None:
            return Continuation(common, parting)
        common.append(int(theirs.argmax()))
    return Continuation(common, None)


def _part(step: int, ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> Parting | None:
    a, b = int(ours.argmax()), int(theirs.argmax())
    if a == b:
        return None
    return Parting(step, a, b, float(ours[a]) - float(ours[b]), float(theirs[b]) - float(theirs[a]))
