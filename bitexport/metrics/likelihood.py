"""Perplexity of a text on both sides: one number that many positions stand behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bitexport.errors import UsageError
from bitexport.metrics.logits import log_softmax
from bitexport.progress import Progress, ProgressEvent, ignore

#: Tokens of one window, unless the model was made for fewer.
WINDOW = 512
_ROWS = 32


class GivesLogits(Protocol):
    """What perplexity needs of a model."""

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits after every position, float32 ``[T, V]``."""
        ...


@dataclass(frozen=True, slots=True)
class Perplexities:
    """One text's perplexity on both sides.

    Attributes:
        python, cpp: exp of the mean negative log-likelihood of a token, given those before it in its window.
        tokens: tokens predicted.
        window: tokens of a window; every window starts from an empty context.
    """

    python: float
    cpp: float
    tokens: int
    window: int

    @property
    def relative_difference(self) -> float:
        """How far C++ is from Python: 0.001 is 0.1%."""
        return abs(self.cpp - self.python) / self.python


def windows(ids: Sequence[int], length: int) -> list[Sequence[int]]:
    """``ids`` cut into pieces of ``length``; a last one of one token, which predicts nothing, is dropped.

    Raises:
        UsageError: there are fewer than two tokens.
    """
    pieces = [ids[begin : begin + length] for begin in range(0, len(ids), length)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    if not pieces:
        raise UsageError(
            "the text has fewer than two tokens, so that none can be predicted; give a longer one"
        )
    return pieces


def token_losses(logits: npt.NDArray[np.float32], ids: Sequence[int]) -> npt.NDArray[np.float64]:
    """Negative log-likelihood, in nats, of every token but the first.

    Args:
        logits: ``[T, V]``, after every position of ``ids``.
        ids: T token ids.

    Returns:
        float64, shape ``[T - 1]``.
    """
    targets = np.asarray(ids[1:])
    losses = np.empty(len(targets))
    for begin in range(0, len(targets), _ROWS):
        wanted = targets[begin : begin + _ROWS]
        rows = log_softmax(logits[begin : begin + len(wanted)].astype(np.float64))
        losses[begin : begin + len(wanted)] = -rows[np.arange(len(wanted)), wanted]
    return losses


def perplexities(
    python: GivesLogits, cpp: GivesLogits, ids: Sequence[int], window: int, progress: Progress = ignore
) -> Perplexities:
    """Perplexity of ``ids`` on both sides, over the same windows of ``window`` tokens.

    Raises:
        UsageError: there are fewer than two tokens.
    """
    pieces = windows(ids, window)
    sums = np.zeros(2)
    tokens = sum(len(piece) - 1 for piece in pieces)
    for done, piece in enumerate(pieces):
        progress(ProgressEvent(done, len(pieces), "windows", "perplexity"))
        for side, model in enumerate((python, cpp)):
            sums[side] += token_losses(model.logits(piece), piece).sum()
    means = np.exp(sums / tokens)
    return Perplexities(python=float(means[0]), cpp=float(means[1]), tokens=tokens, window=window)
