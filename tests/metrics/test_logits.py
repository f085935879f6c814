"""Agreement of two sets of logits, against numbers computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bitexport.metrics.logits import compare_logits, summarize


def test_comparison_by_hand() -> None:
    first = np.array([[1.0, 0.0, 0.0], [3.0, 4.0, 0.0]], np.float32)
    second = np.array([[1.0, 1.0, 0.0], [3.0, 4.0, 0.0]], np.float32)
    found = compare_logits(first, second)
    np.testing.assert_allclose(found.cosine, [1 / math.sqrt(2), 1])
    np.testing.assert_array_equal(found.max_abs_diff, [1, 0])
    p = np.exp(first[0].astype(float)) / np.exp(first[0].astype(float)).sum()
    q = np.exp(second[0].astype(float)) / np.exp(second[0].astype(float)).sum()
    np.testing.assert_allclose(found.kl, [(p * np.log(p / q)).sum(), 0], atol=1e-15)
    assert found.same_top1.tolist() == [True, True]


def test_many_rows_are_one_comparison() -> None:
    logits = np.random.default_rng(0).standard_normal((100, 7)).astype(np.float32)
    found = compare_logits(logits, logits)
    assert found.cosine.shape == (100,)
    np.testing.assert_allclose(found.cosine, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_logit_never_passes(bad: float) -> None:
    logits = np.ones((2, 3), np.float32)
    other = logits.copy()
    other[1, 1] = bad
    assert not summarize(compare_logits(logits, other)).cosine_min >= 0.0
