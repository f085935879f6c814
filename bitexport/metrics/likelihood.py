"""How likely a model finds a text: loss, perplexity and next-token accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bitexport.errors import UsageError
from bitexport.metrics.logits import CHUNK_ROWS, log_softmax
from bitexport.progress import Progress, ProgressEvent, ignore

#: Tokens per window, unless the model's context is shorter.
WINDOW = 512


class GivesLogits(Protocol):
    """The part of a model that perplexity needs."""

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits after every position of ``ids``, float32 ``[T, V]``."""
        ...


@dataclass(frozen=True, slots=True)
class Perplexities:
    """One text's perplexity on both sides.

    Attributes:
        python, cpp: exp of the mean negative log-likelihood per token, each token given those before it in
            its window.
        tokens: number of tokens predicted.
        window: tokens per window; every window starts from an empty context.
    """

    python: float
    cpp: float
    tokens: int
    window: int

    @property
    def relative_difference(self) -> float:
        """|C++ - Python| / Python: 0.001 is 0.1%."""
        return abs(self.cpp - self.python) / self.python


@dataclass(slots=True)
class PredictionScore:
    """How well a model predicts tokens, each given the true ones before it; accumulated over batches.

    Attributes:
        tokens: number of tokens predicted.
        hits: how many of them the model found most likely.
        loss: sum of their negative log-likelihoods, in nats.
    """

    tokens: int = 0
    hits: int = 0
    loss: float = 0.0

    def add(self, logits: npt.NDArray[np.float32], targets: npt.NDArray[np.integer[Any]]) -> None:
        """Add a batch of positions.

        Args:
            logits: ``[T, V]``, each row the prediction of the target with the same index.
            targets: ``[T]``, the true tokens.
        """
        for losses in _chunked_losses(logits, targets):
            self.loss += float(losses.sum())
        self.hits += int((logits.argmax(axis=1) == targets).sum())
        self.tokens += len(targets)

    @property
    def perplexity(self) -> float:
        """exp(loss / tokens); infinite where that overflows."""
        mean = self.loss / self.tokens
        return math.exp(mean) if not mean > 700 else math.inf

    @property
    def accuracy(self) -> float:
        """hits / tokens."""
        return self.hits / self.tokens

    def to_json(self) -> dict[str, Any]:
        """The numbers as one JSON object."""
        return {
            "tokens": self.tokens,
            "perplexity": self.perplexity,
            "accuracy": self.accuracy,
            "loss": self.loss / self.tokens,
        }


def windows(ids: Sequence[int], length: int) -> list[Sequence[int]]:
    """``ids`` cut into windows of ``length``; a last window of one token, which predicts nothing, is dropped.

    Raises:
        UsageError: there are fewer than two tokens.
    """
    pieces = [ids[begin : begin + length] for begin in range(0, len(ids), length)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    if not pieces:
        raise UsageError("the text has fewer than two tokens, so none can be predicted; give a longer text")
    return pieces


def token_losses(logits: npt.NDArray[np.float32], ids: Sequence[int]) -> npt.NDArray[np.float64]:
    """Negative log-likelihood of every token but the first: -log softmax(logits[t])[ids[t + 1]], in nats.

    Args:
        logits: ``[T, V]``, after every position of ``ids``.
        ids: T token ids.

    Returns:
        float64, shape ``[T - 1]``.
    """
    return np.concatenate([np.empty(0), *_chunked_losses(logits, np.asarray(ids[1:]))])


def _chunked_losses(
    logits: npt.NDArray[np.float32], targets: npt.NDArray[np.integer[Any]]
) -> Iterator[npt.NDArray[np.float64]]:
    """-log softmax(logits[t])[targets[t]], in float64, for :data:`CHUNK_ROWS` positions at a time."""
    for begin in range(0, len(targets), CHUNK_ROWS):
        wanted = targets[begin : begin + CHUNK_ROWS]
        rows = log_softmax(logits[begin : begin + len(wanted)].astype(np.float64))
        yield -rows[np.arange(len(wanted)), wanted]


def perplexities(
    python: GivesLogits, cpp: GivesLogits, ids: Sequence[int], window: int, progress: Progress = ignore
) -> Perplexities:
    """Perplexity of ``ids`` on both sides, over the same disjoint windows of ``window`` tokens.

    exp(-sum(log p(x_i | x_<i)) / N), as in "Perplexity of fixed-length models" in transformers'
    documentation.

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
