"""Sets of training examples: prompts with answers, windows of a run of tokens, or a mixture of sources."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bitexport.train.batch import NOT_COUNTED
from bitexport.train.data.cache import TokenCache

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


class CachedExamples:
    """Prompts with answers from a cache of tokens.

    Args:
        cache: the tokens.
        records: the numbers of the records, in order.
    """

    def __init__(self, cache: TokenCache, records: npt.NDArray[np.integer]) -> None:
        self.cache = cache
        self.records = records
        self.lengths: Ids = cache.lengths[records]
        prompts = cache.prompts[records].astype(np.int64)
        self.targets: Ids = self.lengths - np.maximum(prompts, 1)

    def get(self, _pass_number: int, index: int) -> tuple[Ids, Ids]:
        """Token ids and labels, both ``[T]``; the labels of the prompt are NOT_COUNTED."""
        record = self.records[index]
        begin = self.cache.offsets[record]
        end = self.cache.offsets[record + 1]
        ids = self.cache.tokens[begin:end].astype(np.int64)
        labels = ids.copy()
        labels[: self.cache.prompts[record]] = NOT_COUNTED
        return ids, labels


class RunOfTokens:
    """Records of a cache as one run of tokens, without copying it; ``lead`` comes before the first."""

    def __init__(self, cache: TokenCache, records: npt.NDArray[np.integer], lead: Sequence[int] = ()) -> None:
        self.cache = cache
        self.records = records
        self.lead = np.array(lead, dtype=np.uint32)
        lengths = cache.lengths[records]
        self.ends = np.cumsum(np.concatenate([[len(self.lead)], lengths]))  # after the lead, and each record

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, place: slice) -> npt.NDArray[np.uint32]:
        """The tokens from ``place.start`` up to ``place.stop``, both at least 0."""
        stop = min(place.stop, len(self))
        pieces = [self.lead[place.start : stop]]
        at = max(place.start, len(self.lead))
        number = int(np.searchsorted(self.ends, at, side="right"))  # of the part that holds position `at`
        while at < stop:
            offset = int(self.cache.offsets[self.records[number - 1]]) - int(self.ends[number - 1])
            until = min(stop, int(self.ends[number]))
            pieces.append(self.cache.tokens[offset + at : offset + until])
            at = until
            number += 1
        return np.concatenate(pieces)


class WindowedExamples:
    """A run of tokens (any integer dtype) as windows of ``length``; every token is counted.

    With a ``seed``, each pass cuts at other positions, so that a token is not always seen in the same window.
    """

    def __init__(
        self, tokens: npt.NDArray[np.integer] | RunOfTokens, length: int, seed: int | None = None
    ) -> None:
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


class MixedExamples:
    """Examples of several sources, of which a run sees parts as large as their weights, in tokens.

    In a pass, the source that lasts the shortest time is seen once; of the others, every pass continues where
    the last one ended, and begins again, in a new order, after the last example.

    Args:
        parts: the examples of each source.
        weights: of each source, 1 in total.
    """

    def __init__(self, parts: Sequence[CachedExamples | WindowedExamples], weights: Sequence[float]) -> None:
        self.parts = parts
        self.lengths: Ids = np.concatenate([part.lengths for part in parts])
        self.targets: Ids = np.concatenate([part.targets for part in parts])
        self._starts = np.cumsum([0, *(len(part.lengths) for part in parts)])
        shares = [
            weight / max(1, int(part.lengths.sum())) for part, weight in zip(parts, weights, strict=True)
        ]
        #: The part of each source that a pass sees.
        self.fractions = [share / max(shares) for share in shares]

    def get(self, pass_number: int, index: int) -> tuple[Ids, Ids]:
        """Token ids and labels, both ``[T]``."""
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.parts[part].get(pass_number, index - int(self._starts[part]))

    def order(self, seed: int, pass_number: int) -> Ids:
        """The examples of a pass: those of one source after another."""
        chosen: list[Ids] = []
        for number, fraction in enumerate(self.fractions):
            size = len(self.parts[number].lengths)
            at = round(pass_number * fraction * size)
            stop = round((pass_number + 1) * fraction * size)
            while at < stop:
                order = np.random.default_rng([seed, number, at // size, 2]).permutation(size)
                until = min(stop, (at // size + 1) * size)
                chosen.append(self._starts[number] + order[at % size : at % size + until - at])
                at = until
        return np.concatenate(chosen)


Examples = ListedExamples | CachedExamples | WindowedExamples | MixedExamples
