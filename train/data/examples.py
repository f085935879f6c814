"""Sets of training examples: listed one by one, or windows cut from a run of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bitexport.train.batch import NOT_COUNTED

Ids = npt.NDArray[np.int64]


class ListedExamples:
    """Examples that are the same in every pass, for instance prompts with answers.

    Args:
        examples: pairs of token ids and labels, each of its own length.
    """

    def __init__(self, examples: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
        self.examples = examples
        self.lengths: Ids = np.array([len(ids) for ids, _ in examples], dtype=np.int64)
        #: Of each example, the tokens that are targets; the first token never is.
        self.targets: Ids = np.array(
            [sum(label != NOT_COUNTED for label in labels[1:]) for _, labels in examples], dtype=np.int64
        )

    def get(self, _pass_number: int, index: int) -> tuple[Ids, Ids]:
        """Token ids and labels, both ``[T]``; a label is its token id, or NOT_COUNTED."""
        ids, labels = self.examples[index]
        return np.asarray(ids, dtype=np.int64), np.asarray(labels, dtype=np.int64)


class WindowedExamples:
    """A run of tokens (any integer dtype) as windows of ``length``; every token is counted.

    With a ``seed``, each pass cuts at other positions, so that a token is not always seen in the same window.
    """

    def __init__(self, tokens: npt.NDArray[np.integer], length: int, seed: int | None = None) -> None:
        self.tokens = tokens
        self.length = length
        self.seed = seed
        count = len(tokens) // length
        if seed is not None:
            count = max(0, count - 1)  # one less, so that there are as many windows wherever the cuts are
        self.lengths: Ids = np.full(count, length, dtype=np.int64)
        self.targets: Ids = self.lengths - 1

    def get(self, pass_number: int, index: int) -> tuple[Ids, Ids]:
        """Token ids and labels, both ``[length]``."""
        start = self._offset(pass_number) + index * self.length
        ids = np.asarray(self.tokens[start : start + self.length], dtype=np.int64)
        return ids, ids

    def _offset(self, pass_number: int) -> int:
        if self.seed is None:
            return 0
        return int(np.random.default_rng([self.seed, pass_number, 1]).integers(self.length))


Examples = ListedExamples | WindowedExamples
