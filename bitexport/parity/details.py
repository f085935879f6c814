"""Keeps what a report shows of a run's logits: a sample of pairs, and where the first choices differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bitexport.metrics.logits import log_softmax

Logits = npt.NDArray[np.float32]
#: Told of a prompt's number, its token ids, and the logits of Python and C++, ``[T, V]``.
See = Callable[[int, Sequence[int], Logits, Logits], None]

_PAIRS_A_PROMPT = 400
_SHOWN = 40
_TOP = 5
_CONTEXT = 24


@dataclass(frozen=True, slots=True)
class Choice:
    """A token and its probability."""

    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class TopDifference:
    """A position after which the two sides find different tokens most likely.

    Attributes:
        prompt: its number, from 0.
        position: the token after which.
        context: the text up to there.
        python, cpp: the five most likely tokens of each.
    """

    prompt: int
    position: int
    context: str
    python: list[Choice]
    cpp: list[Choice]


@dataclass
class Collector:
    """Gathers over all prompts.

    Attributes:
        text: turns ids into text.
        pairs: sampled logits of Python and C++, by turns; always the same sample.
        differences: the first positions where the first choices differ, and ``differing`` how many there are.
        positions: how many were looked at.
    """

    text: Callable[[Sequence[int]], str]
    pairs: list[npt.NDArray[np.float32]] = field(default_factory=list)
    differences: list[TopDifference] = field(default_factory=list)
    differing: int = 0
    positions: int = 0

    def see(self, prompt: int, ids: Sequence[int], ours: Logits, theirs: Logits) -> None:
        """One prompt's logits."""
        random = np.random.default_rng(prompt)
        rows = random.integers(0, len(ours), _PAIRS_A_PROMPT)
        columns = random.integers(0, ours.shape[1], _PAIRS_A_PROMPT)
        # a uniform sample hardly meets the large logits, which matter most
        columns[::4] = ours[rows[::4]].argmax(axis=1)
        self.pairs.append(np.stack([ours[rows, columns], theirs[rows, columns]]))
        self.positions += len(ours)
        for place in np.nonzero(ours.argmax(axis=1) != theirs.argmax(axis=1))[0]:
            at = int(place)
            self.differing += 1
            if len(self.differences) < _SHOWN:
                self.differences.append(
                    TopDifference(
                        prompt,
                        at,
                        self.text(ids[max(0, at + 1 - _CONTEXT) : at + 1]),
                        self._top(ours[at]),
                        self._top(theirs[at]),
                    )
                )

    def _top(self, logits: Logits) -> list[Choice]:
        probabilities = np.exp(log_softmax(logits.astype(np.float64)))
        best = np.argsort(-probabilities, kind="stable")[:_TOP]
        return [Choice(self.text([int(token)]), float(probabilities[token])) for token in best]


@dataclass(frozen=True, slots=True)
class Details:
    """What was kept of the run that was judged, and of the plain one."""

    judged: Collector
    plain: Collector
