"""Example sets: what an index gives in each pass."""

from __future__ import annotations

import numpy as np

from bitexport.train.data.examples import ListedExamples, WindowedExamples


def test_listed_examples_are_the_same_in_every_pass() -> None:
    examples = ListedExamples([([5, 6, 7], [-100, 6, 7]), ([8], [8])])
    assert examples.lengths.tolist() == [3, 1]
    for pass_number in (0, 1):
        ids, labels = examples.get(pass_number, 0)
        assert (ids.tolist(), labels.tolist()) == ([5, 6, 7], [-100, 6, 7])
        assert ids.dtype == labels.dtype == np.int64


def test_windows_without_a_seed_are_cut_at_multiples_of_their_length() -> None:
    windows = WindowedExamples(np.arange(10, dtype=np.uint32), 4)
    assert windows.lengths.tolist() == [4, 4]
    ids, labels = windows.get(3, 1)
    assert ids.tolist() == labels.tolist() == [4, 5, 6, 7]
    assert ids.dtype == np.int64


def test_a_seed_cuts_every_pass_elsewhere_and_repeatably() -> None:
    tokens = np.arange(1000)
    windows = WindowedExamples(tokens, 50, seed=7)
    assert len(windows.lengths) == 19  # one less than fit, so that every offset has as many
    starts = [int(windows.get(number, 0)[0][0]) for number in range(8)]
    assert len(set(starts)) > 1
    assert all(0 <= start < 50 for start in starts)
    assert starts == [int(WindowedExamples(tokens, 50, seed=7).get(number, 0)[0][0]) for number in range(8)]
    last, _ = windows.get(5, 18)
    assert len(last) == 50
    assert last.tolist() == list(range(starts[5] + 900, starts[5] + 950))


def test_fewer_tokens_than_a_window() -> None:
    assert len(WindowedExamples(np.arange(3), 4, seed=1).lengths) == 0
