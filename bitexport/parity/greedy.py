"""Greedy continuation of one text by both sides, and the step at which the two diverge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

#: Two logits this close are a tie within rounding: the probabilities differ by a tenth.
NEAR_TIE = 0.1


class StepwiseModel(Protocol):
    """A model that is run token by token."""

    def clear(self) -> None:
        """Empty the context."""
        ...

    def feed(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Continue the context with ``ids``; returns the logits after the last of them, float32 ``[V]``."""
        ...


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first step at which two greedy continuations differ.

    Attributes:
        step: number of tokens before it, which are the same on both sides.
        python_token, cpp_token: the token that each side chose.
        python_gap, cpp_gap: each side's logit of its own choice minus that of the other side's choice.
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
    """The tokens that both sides generated before they diverge, if they do."""

    tokens: list[int]
    divergence: Divergence | None


def continue_both(python: StepwiseModel, cpp: StepwiseModel, ids: Sequence[int], count: int) -> Continuation:
    """Generate up to ``count`` most likely tokens on both sides; stop at the first that differs.

    An end-of-text token does not end the continuation.
    """
    python.clear()
    cpp.clear()
    common: list[int] = []
    following: Sequence[int] = ids
    for step in range(count):
        python_logits, cpp_logits = python.feed(following), cpp.feed(following)
        divergence = _divergence(step, python_logits, cpp_logits)
        if divergence is not None:
            return Continuation(common, divergence)
        following = [int(python_logits.argmax())]
        common += following
    return Continuation(common, None)


def compare_choices(
    python: Sequence[npt.NDArray[np.float32]], cpp: Sequence[npt.NDArray[np.float32]]
) -> Continuation:
    """Compare greedy choices, given each side's logits, float32 ``[V]``, at the steps of one continuation."""
    common: list[int] = []
    for step, (python_logits, cpp_logits) in enumerate(zip(python, cpp, strict=False)):
        divergence = _divergence(step, python_logits, cpp_logits)
        if divergence is not None:
            return Continuation(common, divergence)
        common.append(int(cpp_logits.argmax()))
    return Continuation(common, None)


def _divergence(
    step: int, python: npt.NDArray[np.float32], cpp: npt.NDArray[np.float32]
) -> Divergence | None:
    a, b = int(python.argmax()), int(cpp.argmax())
    if a == b:
        return None
    return Divergence(step, a, b, float(python[a]) - float(python[b]), float(cpp[b]) - float(cpp[a]))
