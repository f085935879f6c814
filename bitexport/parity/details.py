"""What the report page shows of the logits: a sample of pairs, and where the most likely tokens differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bitexport.metrics.logits import log_softmax

Logits = npt.NDArray[np.float32]
#: Called with a prompt's index, its token ids, and the logits of Python and of C++, both ``[T, V]``.
OnLogits = Callable[[int, Sequence[int], Logits, Logits], None]

_PAIRS_PER_PROMPT = 400
_MAX_DIFFERENCES = 40
_TOP = 5
_CONTEXT_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Choice:
    """A token's text and its probability."""

    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class TopDifference:
    """A position at which the two sides predict different most likely tokens.

    Attributes:
        prompt: index of the prompt, from 0.
        position: index of the token after which they differ.
        context: the text up to and including that token.
        python, cpp: the five most likely tokens of each side.
    """

    prompt: int
    position: int
    context: str
    python: list[Choice]
    cpp: list[Choice]


@dataclass
class LogitDetails:
    """Collects the details of all prompts of one comparison.

    Attributes:
        text: converts token ids to text.
        pairs: per prompt, sampled logits ``[2, N]``: Python's, then those of C++; always the same sample.
        differences: the first positions at which the most likely tokens differ, at most 40.
        differing: number of all such positions.
        positions: number of positions compared.
    """

    text: Callable[[Sequence[int]], str]
    pairs: list[npt.NDArray[np.float32]] = field(default_factory=list)
    differences: list[TopDifference] = field(default_factory=list)
    differing: int = 0
    positions: int = 0

    def add(self, prompt: int, ids: Sequence[int], python: Logits, cpp: Logits) -> None:
        """Collect one prompt; an :data:`OnLogits`."""
        random = np.random.default_rng(prompt)
        rows = random.integers(0, len(python), _PAIRS_PER_PROMPT)
        columns = random.integers(0, python.shape[1], _PAIRS_PER_PROMPT)
        # a uniform sample hardly contains the large logits, which matter most
        columns[::4] = python[rows[::4]].argmax(axis=1)
        self.pairs.append(np.stack([python[rows, columns], cpp[rows, columns]]))
        self.positions += len(python)
        differing = np.nonzero(python.argmax(axis=1) != cpp.argmax(axis=1))[0]
        self.differing += len(differing)
        for position in map(int, differing[: _MAX_DIFFERENCES - len(self.differences)]):
            context = self.text(ids[max(0, position + 1 - _CONTEXT_TOKENS) : position + 1])
            self.differences.append(
                TopDifference(
                    prompt, position, context, self._top(python[position]), self._top(cpp[position])
                )
            )

    def _top(self, logits: Logits) -> list[Choice]:
        probabilities = np.exp(log_softmax(logits.astype(np.float64)))
        best = np.argsort(-probabilities, kind="stable")[:_TOP]
        return [Choice(self.text([int(token)]), float(probabilities[token])) for token in best]


@dataclass(frozen=True, slots=True)
class Details:
    """Details of the comparison that is judged, and of the plain one; they may be the same."""

    judged: LogitDetails
    plain: LogitDetails
