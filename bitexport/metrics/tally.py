"""Counting what a model predicts: the same arithmetic for all sides."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitexport.metrics.logits import log_softmax

_ROWS = 32


@dataclass(slots=True)
class Tally:
    """How well tokens were predicted, each given the true ones before it.

    Attributes:
        tokens: how many.
        hits: of how many the true one was found most likely.
        loss: the sum of their negative log-likelihoods, in nats.
    """

    tokens: int = 0
    hits: int = 0
    loss: float = 0.0

    def add(self, logits: npt.NDArray[np.float32], targets: npt.NDArray[np.integer[Any]]) -> None:
        """Count some positions.

        Args:
            logits: ``[T, V]``, each row what was predicted for the target beside it.
            targets: ``[T]``, the true tokens.
        """
        for begin in range(0, len(targets), _ROWS):
            rows = logits[begin : begin + _ROWS].astype(np.float64)
            wanted = targets[begin : begin + _ROWS]
            self.loss -= float(log_softmax(rows)[np.arange(len(wanted)), wanted].sum())
            self.hits += int((rows.argmax(axis=1) == wanted).sum())
        self.tokens += len(targets)

    @property
    def perplexity(self) -> float:
        """exp of the mean loss; infinite where that is too large."""
        mean = self.loss / self.tokens
        return math.exp(mean) if not mean > 700 else math.inf

    @property
    def accuracy(self) -> float:
        """The fraction of tokens that were found most likely."""
        return self.hits / self.tokens

    def to_json(self) -> dict[str, Any]:
        """The numbers as one JSON object."""
        return {
            "tokens": self.tokens,
            "perplexity": self.perplexity,
            "accuracy": self.accuracy,
            "loss": self.loss / self.tokens,
        }
