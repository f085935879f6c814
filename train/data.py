"""Tokens to training examples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

Example = dict[str, torch.Tensor]


class TrainingWindows(Dataset[Example]):
    """``count`` windows of ``length`` tokens, to be read in order of their index.

    They go through all tokens again and again. Each pass cuts the tokens at other places and shuffles the
    pieces. Window i depends on (seed, i) alone, so that a resumed run goes on with the windows that it
    has not seen.
    """

    def __init__(self, tokens: npt.NDArray[np.int64], length: int, count: int, seed: int) -> None:
        self.tokens, self.length, self.count, self.seed = tokens, length, count, seed
        self.windows_per_pass = len(tokens) // length - 1  # one less, so that every cut has as many
        self._pass = -1
        self._starts: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        number, position = divmod(index, self.windows_per_pass)
        if number != self._pass:
            random = np.random.default_rng([self.seed, number])
            offset = random.integers(self.length)
            self._starts = offset + self.length * random.permutation(self.windows_per_pass)
            self._pass = number
        start = self._starts[position]
        return _example(self.tokens[start : start + self.length])


class HeldOutWindows(Dataset[Example]):
    """The tokens cut into windows of ``length`` that do not overlap; at most ``count``, evenly spread."""

    def __init__(self, tokens: npt.NDArray[np.int64], length: int, count: int | None = None) -> None:
        whole = len(tokens) // length
        chosen = range(whole) if count is None else np.linspace(0, whole - 1, min(count, whole)).astype(int)
        self.windows = [tokens[i * length : (i + 1) * length] for i in chosen]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Example:
        return _example(self.windows[index])


def _example(window: npt.NDArray[np.int64]) -> Example:
    ids = torch.from_numpy(window)
    return {"input_ids": ids, "labels": ids}  # the model shifts the labels by one
