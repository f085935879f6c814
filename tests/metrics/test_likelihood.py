"""Losses, perplexity and accuracy, against numbers computed by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from bitexport.metrics.likelihood import PredictionScore, perplexities, token_losses


def test_losses_by_hand() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [1, 1, 1]], np.float32))
    np.testing.assert_allclose(token_losses(logits, [0, 1, 2]), [-np.log(0.25), -np.log(0.1)], rtol=1e-6)
    assert token_losses(logits[:1], [0]).shape == (0,)


class _Constant:
    """A model whose logits are the same at every position."""

    def __init__(self, *row: float) -> None:
        self._row = np.array(row, np.float32)

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        return np.stack([self._row] * len(ids))


def test_perplexity_over_windows() -> None:
    even, biased = _Constant(0.0, 0.0), _Constant(math.log(3.0), 0.0)
    found = perplexities(even, biased, [0, 0, 1, 1, 1, 0, 0], window=3)
    # windows 0 0 1 | 1 1 0 | 0: the last predicts nothing
    assert found.tokens == 4
    assert found.python == pytest.approx(2)
    assert found.cpp == pytest.approx((4 / 3 * 4 * 4 * 4 / 3) ** 0.25)


def test_a_score_by_hand() -> None:
    """Forty rows, more than one chunk: every fourth prediction is wrong, each at odds of 3 to 1 + 1."""
    targets = np.arange(40) % 3
    logits = np.zeros((40, 3), dtype=np.float32)
    for row, target in enumerate(targets):
        logits[row, target if row % 4 else (target + 1) % 3] = math.log(3)
    score = PredictionScore()
    score.add(logits[:33], targets[:33])
    score.add(logits[33:33], targets[33:33])
    score.add(logits[33:], targets[33:])
    assert (score.tokens, score.hits) == (40, 30)
    assert score.accuracy == 0.75
    loss = 30 * math.log(5 / 3) + 10 * math.log(5)
    assert score.loss == pytest.approx(loss, rel=1e-6)
    assert score.perplexity == pytest.approx(math.exp(loss / 40), rel=1e-6)
    assert score.to_json()["loss"] == pytest.approx(loss / 40, rel=1e-6)


def test_a_model_that_is_sure_of_the_wrong_token() -> None:
    score = PredictionScore()
    score.add(np.array([[0, 3e4]], dtype=np.float32), np.array([0]))
    assert score.perplexity == math.inf
    assert (score.hits, score.loss) == (0, 3e4)
