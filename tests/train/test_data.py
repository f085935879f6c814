from __future__ import annotations

import numpy as np

from train.data import HeldOutWindows, TrainingWindows

TOKENS = np.arange(1000)


def starts(windows: TrainingWindows, first: int, last: int) -> list[int]:
    return [int(windows[i]["input_ids"][0]) for i in range(first, last)]


def test_every_pass_reads_everything_once_and_elsewhere() -> None:
    windows = TrainingWindows(TOKENS, 32, 90, seed=1)
    size = windows.windows_per_pass
    passes = [starts(windows, i * size, (i + 1) * size) for i in range(3)]
    for found in passes:
        assert np.diff(sorted(found)).tolist() == [32] * (size - 1)  # no gap, no overlap
        assert found != sorted(found)
    assert len({found[0] % 32 for found in passes}) > 1


def test_a_window_depends_on_seed_and_index_alone() -> None:
    straight = starts(TrainingWindows(TOKENS, 32, 90, seed=1), 0, 90)
    longer = TrainingWindows(TOKENS, 32, 5000, seed=1)
    assert [int(longer[i]["input_ids"][0]) for i in reversed(range(90))] == straight[::-1]
    assert starts(TrainingWindows(TOKENS, 32, 90, seed=2), 0, 90) != straight


def test_windows_are_whole_and_their_own_labels() -> None:
    windows = TrainingWindows(TOKENS, 32, 300, seed=0)
    for i in range(300):
        example = windows[i]
        ids = example["input_ids"]
        assert ids.tolist() == list(range(int(ids[0]), int(ids[0]) + 32))
        assert example["labels"] is ids


def test_held_out_windows_are_spread_over_the_text() -> None:
    assert len(HeldOutWindows(TOKENS, 32)) == 31
    assert [int(w[0]) for w in HeldOutWindows(TOKENS, 32, 3).windows] == [0, 480, 960]
    assert len(HeldOutWindows(TOKENS, 32, 99)) == 31
