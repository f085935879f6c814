"""Bounds of the decision tree that no small trained model reaches reliably on every CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bitexport.doctor.free_sampling import FreeSampling
from bitexport.doctor.verdicts import is_foreign, is_language


def sampled(kept: float, kept_shuffled: float) -> FreeSampling:
    return FreeSampling(
        information=2.9,
        entropy=0.9,
        distinct=60,
        repeated=0.05,
        words=0.9,
        kept=kept,
        kept_shuffled=kept_shuffled,
    )


@pytest.mark.parametrize("user_text", [True, False])
def test_where_shuffling_loses_little_the_users_text_decides(user_text: bool) -> None:
    """The first pair is that of a sound model; half of what shuffling loses there is sampling noise."""
    assert is_foreign(sampled(0.919, 0.872), user_text=user_text) is user_text
    assert is_foreign(sampled(0.85, 0.81), user_text=user_text) is user_text


@pytest.mark.parametrize("user_text", [True, False])
def test_where_shuffling_loses_a_fifth_re_encoding_decides(user_text: bool) -> None:
    assert is_foreign(sampled(0.89, 0.79), user_text=user_text)
    assert not is_foreign(sampled(0.90, 0.79), user_text=user_text)
    assert is_foreign(sampled(0.30, 0.25), user_text=user_text)
    assert not is_foreign(sampled(0.98, 0.25), user_text=user_text)


def test_white_space_is_no_language() -> None:
    assert is_language(sampled(0.9, 0.3))
    assert not is_language(replace(sampled(0.0, 0.0), words=0.02))
