"""Chooses a token from logits, for several positions of one evaluation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# Logits whose powers fit a processor's caches.
_CACHED = 65536


class TokenChoice:
    """Chooses tokens with the options of :class:`bitexport.runtime.sampling.Sampling`, in the same order.

    Args:
        temperature, top_k, top_p, min_p: see there; temperature 0 chooses the most likely token.
        seed: the same seed gives the same tokens.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._temperature = temperature
        self._top_k = top_k
        self._top_p = top_p
        self._min_p = min_p
        self._random = np.random.default_rng(seed) if temperature else None  # takes as long as a small pass

    @property
    def most_likely(self) -> bool:
        """Whether the most likely token is always chosen."""
        return self._temperature == 0

    def __call__(self, logits: npt.NDArray[np.float32]) -> int:
        """A token from ``logits`` ``[V]``; -inf excludes a token."""
        if self._temperature == 0:
            return int(logits.argmax())
        assert self._random is not None
        order = np.arange(len(logits))
        if 0 < self._top_k < len(logits):
            order = np.argpartition(-logits, self._top_k)[: self._top_k]
        order = order[np.argsort(-logits[order], kind="stable")]
        values = logits[order].astype(np.float64)
        probabilities = _softmax(values)
        # the token with which the sum reaches top_p is the last that is kept
        before = np.cumsum(probabilities) - probabilities
        kept = (before < self._top_p) & (probabilities >= self._min_p * probabilities[0])
        kept[0] = True
        order, values = order[kept], values[kept]
        total = np.cumsum(_softmax(values / self._temperature))
        place = int(np.searchsorted(total, self._random.random() * total[-1], side="right"))
        return int(order[min(place, len(order) - 1)])


def confidence(
    logits: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """The most likely token of each row of ``logits`` ``[N, V]``, and its probability: both ``[N]``."""
    likely = logits.argmax(axis=1)
    found = np.empty(len(logits))
    rows = max(1, _CACHED // logits.shape[1])
    for begin in range(0, len(logits), rows):
        part = logits[begin : begin + rows]
        powers = part - part[np.arange(len(part)), likely[begin : begin + rows], None]
        np.exp(powers, out=powers)
        found[begin : begin + rows] = 1 / powers.sum(axis=1)
    return likely, found


def _softmax(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    powers = np.exp(values - values.max())
    return powers / powers.sum()  # type: ignore[no-any-return]
