"""The counting that all sides share, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bitexport.metrics.tally import Tally


def test_counts_what_was_planted() -> None:
    """Forty rows, more than are taken at a time: every fourth one is wrong, each with odds of 3 to 1 + 1."""
    targets = np.arange(40) % 3
    logits = np.zeros((40, 3), dtype=np.float32)
    for row, target in enumerate(targets):
        logits[row, target if row % 4 else (target + 1) % 3] = math.log(3)
    tally = Tally()
    tally.add(logits[:33], targets[:33])
    tally.add(logits[33:33], targets[33:33])
    tally.add(logits[33:], targets[33:])
    assert (tally.tokens, tally.hits) == (40, 30)
    assert tally.accuracy == 0.75
    loss = 30 * math.log(5 / 3) + 10 * math.log(5)
    assert tally.loss == pytest.approx(loss, rel=1e-6)
    assert tally.perplexity == pytest.approx(math.exp(loss / 40), rel=1e-6)
    assert tally.to_json()["loss"] == pytest.approx(loss / 40, rel=1e-6)


def test_a_model_that_is_sure_of_the_wrong_token() -> None:
    tally = Tally()
    tally.add(np.array([[0, 3e4]], dtype=np.float32), np.array([0]))
    assert tally.perplexity == math.inf
    assert (tally.hits, tally.loss) == (0, 3e4)
