"""Examples to batches: which tokens every step of a run sees, decided before the first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from bitexport.errors import UsageError
from bitexport.train.objective.losses import NOT_COUNTED

Batch = dict[str, torch.Tensor]
Ids = npt.NDArray[np.int64]
# Batches whose examples are sorted by length together: little padding, and still a new mixture every pass.
_POOL = 50


class Listed:
    """Examples that are the same in every pass, prompts with answers for instance."""

    def __init__(self, examples: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
        self.examples = examples
        self.lengths: Ids = np.array([len(ids) for ids, _ in examples], dtype=np.int64)

    def get(self, _number: int, index: int) -> tuple[Ids, Ids]:
        """In a pass, token ids and labels, both ``[T]``; a label is its id, or -100: not counted."""
        ids, labels = self.examples[index]
        return np.asarray(ids, dtype=np.int64), np.asarray(labels, dtype=np.int64)


class Windows:
    """A run of tokens (any integers) in windows of ``length``; a ``seed`` cuts each pass at other places."""

    def __init__(self, tokens: npt.NDArray[np.integer], length: int, seed: int | None = None) -> None:
        self.tokens, self.length, self.seed = tokens, length, seed
        # One less where cuts move, so that every cut has as many.
        count = max(0, len(tokens) // length - (seed is not None))
        self.lengths: Ids = np.full(count, length, dtype=np.int64)

    def get(self, number: int, index: int) -> tuple[Ids, Ids]:
        offset = 0
        if self.seed is not None:
            offset = int(np.random.default_rng([self.seed, number, 1]).integers(self.length))
        start = offset + index * self.length
        ids = np.asarray(self.tokens[start : start + self.length], dtype=np.int64)
        return ids, ids


Examples = Listed | Windows


class BatchPlan(Dataset[Batch]):
    """The micro-batches of a run in order; item i is a whole one, padded to its longest example.

    Passes over the examples follow each other until ``budget`` tokens are seen; the last step is filled. The
    plan depends on the examples, the sizes and the seed alone, so that a resumed run goes on with what it has
    not seen, and two processes that take turns see what one would. A micro-batch has at most ``micro_tokens``
    with padding; an optimizer step has ``per_step`` of them, over all processes. UsageError: no example.
    """

    def __init__(
        self, examples: Examples, *, micro_tokens: int, per_step: int, budget: int, seed: int, pad_id: int
    ) -> None:
        self.examples, self.pad_id = examples, pad_id
        self.batches: list[tuple[int, Ids]] = []  # pass, indices
        tokens: list[int] = []
        seen = number = 0
        lengths = examples.lengths
        if not len(lengths):
            raise UsageError("data: no example is left for training; give more, or shorten sequence_length")
        while seen < budget or len(self.batches) % per_step:
            for indices in _batches_of_pass(lengths, micro_tokens, np.random.default_rng([seed, number])):
                self.batches.append((number, indices))
                tokens.append(int(lengths[indices].sum()))
                seen += tokens[-1]
                if seen >= budget and len(self.batches) % per_step == 0:
                    break
            number += 1
        self.steps = len(self.batches) // per_step
        #: tokens seen after so many steps, ``[steps + 1]``
        self.tokens_after = np.concatenate([[0], np.cumsum(tokens)[per_step - 1 :: per_step]])

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        number, indices = self.batches[index]
        return collate([self.examples.get(number, int(i)) for i in indices], self.pad_id)


def in_order(examples: Examples, micro_tokens: int, limit: int, pad_id: int) -> list[Batch]:
    """At most ``limit`` examples, evenly spread and sorted by length: what a run judges itself by."""
    lengths = examples.lengths
    if not len(lengths):
        return []
    chosen = np.unique(np.linspace(0, len(lengths) - 1, min(limit, len(lengths))).astype(int))
    chosen = chosen[np.argsort(lengths[chosen], kind="stable")]
    batches = _cut(chosen, lengths, micro_tokens)
    return [collate([examples.get(0, int(i)) for i in batch], pad_id) for batch in batches]


def collate(examples: Sequence[tuple[Ids, Ids]], pad_id: int) -> Batch:
    """``input_ids``, ``attention_mask`` and ``labels``, int64 ``[B, T]``, padded on the right."""
    shape = len(examples), max(len(ids) for ids, _ in examples)
    ids, labels = np.full(shape, pad_id, dtype=np.int64), np.full(shape, NOT_COUNTED, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    for row, (of_ids, of_labels) in enumerate(examples):
        ids[row, : len(of_ids)], labels[row, : len(of_ids)], mask[row, : len(of_ids)] = of_ids, of_labels, 1
    arrays = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _batches_of_pass(lengths: Ids, micro_tokens: int, random: np.random.Generator) -> list[Ids]:
    """A new order of all examples: shuffled, sorted by length within pools, cut, and the pieces shuffled."""
    order = random.permutation(len(lengths))
    pool = max(1, _POOL * micro_tokens // max(1, int(lengths.mean())))
    batches: list[Ids] = []
    for begin in range(0, len(order), pool):
        part = order[begin : begin + pool]
        batches += _cut(part[np.argsort(lengths[part], kind="stable")], lengths, micro_tokens)
    return [batches[i] for i in random.permutation(len(batches))]


def _cut(order: Ids, lengths: Ids, micro_tokens: int) -> list[Ids]:
    """Neighbours together, as many as fit into ``micro_tokens`` once padded. ``order`` rises in length."""
    pieces, begin = [], 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end + 1 - begin) * lengths[order[end]] > micro_tokens:
            pieces.append(order[begin:end])
            begin = end
    return pieces
