"""From examples to micro-batches: what every step of a run sees is decided before the first step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from bitexport.errors import UsageError
from bitexport.train.batch import NOT_COUNTED, Batch
from bitexport.train.data.examples import Examples, Ids, MixedExamples
from bitexport.train.data.packing import pack
from bitexport.train.objective.diffusion import Noise

# The number of micro-batches whose examples are sorted by length together: little padding, and still a new
# mixture in every pass.
_POOL = 50


class BatchPlan(Dataset[Batch]):
    """The micro-batches of a run in order; item i is a complete one, padded to its longest example.

    Passes over the examples follow each other until ``budget`` tokens are seen; the last step is filled up.
    The plan depends only on the examples, the sizes and the seed, so that a resumed run continues with what
    it has not seen, and two processes that take turns see what one process would see.

    Args:
        micro_tokens: the most tokens of a micro-batch, including padding.
        width: packs examples into rows of this many tokens, and makes every micro-batch equally large, if
            need be with rows of padding; 0: one example per row, and as many rows as fit.
        per_step: micro-batches per optimizer step, over all processes.
        budget: tokens to train on, padding not counted.
        noise: of block diffusion; it is part of the micro-batches, and so are shares in what it masks.

    Raises:
        UsageError: there is no example.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        micro_tokens: int,
        per_step: int,
        budget: int,
        seed: int,
        pad_id: int,
        width: int = 0,
        noise: Noise | None = None,
    ) -> None:
        self.examples = examples
        self.noise = noise
        self.per_step = per_step
        self._predicted: tuple[int, Ids] = (-1, np.zeros(0, dtype=np.int64))  # a step, see _predicted_in_step
        self.pad_id = pad_id
        self.width = width
        self.rows = micro_tokens // width if width else 0
        lengths = examples.lengths
        if len(lengths) == 0:
            raise UsageError("data: no example is left for training; give more, or shorten sequence_length")
        #: Of each micro-batch, the number of the pass, the indices of the examples, and, if they are packed,
        #: how many are in each row.
        self.batches: list[tuple[int, Ids, Ids | None]] = []
        sizes: list[tuple[int, int, int]] = []  # of each micro-batch, in UNITS
        seen = 0
        pass_number = 0
        while seen < budget or len(self.batches) % per_step != 0:
            random = np.random.default_rng([seed, pass_number])
            order = random.permutation(len(lengths))
            if isinstance(examples, MixedExamples):
                order = random.permutation(examples.order(seed, pass_number))
            for indices, counts in _batches_of_pass(order, lengths, micro_tokens, width, random):
                self.batches.append((pass_number, indices, counts))
                tokens = int(lengths[indices].sum())
                sizes.append((int(examples.targets[indices].sum()), tokens, len(indices)))
                seen += tokens
                if seen >= budget and len(self.batches) % per_step == 0:
                    break
            pass_number += 1
        self.steps = len(self.batches) // per_step
        self._shares = _shares(np.array(sizes, dtype=np.int64), per_step)
        #: Tokens seen after each number of steps, ``[steps + 1]``.
        self.tokens_after = np.concatenate(
            [[0], np.cumsum([size[1] for size in sizes])[per_step - 1 :: per_step]]
        )

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        batch, shares = self._without_noise(index), self._shares[index]
        if self.noise is not None:
            batch = self.noise.add(batch, index)
            predicted = self._predicted_in_step(index // self.per_step)
            share = self.noise.predicted(batch) / max(predicted.mean(), 1 / self.per_step)
            shares = np.append(shares, np.float32(share))
        return {**batch, "shares": torch.from_numpy(shares)}

    def _without_noise(self, index: int) -> Batch:
        pass_number, indices, counts = self.batches[index]
        examples = [self.examples.get(pass_number, int(i)) for i in indices]
        if counts is None:
            return collate(examples, self.pad_id)
        ends = np.cumsum(counts)
        rows = [examples[end - count : end] for count, end in zip(counts, ends, strict=True)]
        return collate_rows([*rows, *[[]] * (self.rows - len(rows))], self.width, self.pad_id)

    def _predicted_in_step(self, step: int) -> Ids:
        """How many tokens block diffusion predicts in each micro-batch of a step, also of other processes."""
        assert self.noise is not None
        if self._predicted[0] != step:
            begin = step * self.per_step
            numbers = range(begin, begin + self.per_step)
            counts = [self.noise.predicted(self.noise.add(self._without_noise(i), i)) for i in numbers]
            self._predicted = step, np.array(counts, dtype=np.int64)
        return self._predicted[1]


def sample_batches(
    examples: Examples, micro_tokens: int, limit: int, pad_id: int, width: int = 0
) -> list[Batch]:
    """Micro-batches of at most ``limit`` examples, evenly spread over all of them and sorted by length.

    With a ``width`` they are packed, and all have the same shape, as in :class:`BatchPlan`.
    """
    lengths = examples.lengths
    if len(lengths) == 0:
        return []
    spread = np.linspace(0, len(lengths) - 1, min(limit, len(lengths)))
    chosen = np.unique(spread.astype(int))
    if width:
        rows = [[examples.get(0, i) for i in row] for row in pack(chosen, lengths, width)]
        rows += [[]] * (-len(rows) % (micro_tokens // width))
        per_batch = micro_tokens // width
        begins = range(0, len(rows), per_batch)
        return [collate_rows(rows[begin : begin + per_batch], width, pad_id) for begin in begins]
    batches = _cut(_by_length(chosen, lengths), lengths, micro_tokens)
    return [collate([examples.get(0, int(i)) for i in batch], pad_id) for batch in batches]


def collate(examples: Sequence[tuple[Ids, Ids]], pad_id: int) -> Batch:
    """One batch from token ids and labels of each example, both ``[T]``, padded on the right."""
    return collate_rows([[example] for example in examples], max(len(ids) for ids, _ in examples), pad_id)


def collate_rows(rows: Sequence[Sequence[tuple[Ids, Ids]]], width: int, pad_id: int) -> Batch:
    """One batch of ``width`` from the examples of each row, padded on the right."""
    shape = (len(rows), width)
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, NOT_COUNTED, dtype=np.int64)
    for row, examples in enumerate(rows):
        begin = 0
        for number, (ids, example_labels) in enumerate(examples, 1):
            end = begin + len(ids)
            input_ids[row, begin:end] = ids
            attention_mask[row, begin:end] = number
            position_ids[row, begin:end] = np.arange(len(ids))
            labels[row, begin:end] = example_labels
            if number > 1:
                labels[row, begin] = NOT_COUNTED  # the example before it does not predict its first token
            begin = end
    arrays: dict[str, npt.NDArray[np.int64]] = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
    }
    if any(len(examples) > 1 for examples in rows):
        arrays["position_ids"] = position_ids
    targets = labels[:, 1:] != NOT_COUNTED
    arrays["positions"] = np.flatnonzero(np.pad(targets, ((0, 0), (0, 1))))
    arrays["targets"] = labels[:, 1:][targets]
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _shares(sizes: Ids, per_step: int) -> npt.NDArray[np.float32]:
    """``shares`` of every micro-batch (see :data:`Batch`) from sizes; both ``[micro_batches, units]``."""
    steps = sizes.reshape(-1, per_step, sizes.shape[1])
    means = np.maximum(steps.sum(axis=1, keepdims=True), 1) / per_step
    shares: npt.NDArray[np.float32] = (steps / means).astype(np.float32).reshape(sizes.shape)
    return shares


def _batches_of_pass(
    order: Ids, lengths: Ids, micro_tokens: int, width: int, random: np.random.Generator
) -> list[tuple[Ids, Ids | None]]:
    """The shuffled examples of a pass as micro-batches, in random order; see :attr:`BatchPlan.batches`.

    In pools they are sorted by length and cut, or packed into rows.
    """
    mean_length = max(1, int(lengths.mean()))
    pool_size = max(1, _POOL * micro_tokens // mean_length)
    batches: list[tuple[Ids, Ids | None]] = []
    for begin in range(0, len(order), pool_size):
        pool = order[begin : begin + pool_size]
        if width:
            batches += _packed(pool, lengths, micro_tokens, width, random)
        else:
            batches += [(batch, None) for batch in _cut(_by_length(pool, lengths), lengths, micro_tokens)]
    return [batches[i] for i in random.permutation(len(batches))]


def _packed(
    pool: Ids, lengths: Ids, micro_tokens: int, width: int, random: np.random.Generator
) -> list[tuple[Ids, Ids | None]]:
    rows = pack(pool, lengths, width)
    shuffled = [rows[i] for i in random.permutation(len(rows))]  # else long and short ones stay apart
    per_batch = micro_tokens // width
    batches: list[tuple[Ids, Ids | None]] = []
    for begin in range(0, len(shuffled), per_batch):
        chosen = shuffled[begin : begin + per_batch]
        counts = np.array([len(row) for row in chosen], dtype=np.int64)
        batches.append((np.concatenate([np.array(row, dtype=np.int64) for row in chosen]), counts))
    return batches


def _by_length(indices: Ids, lengths: Ids) -> Ids:
    return indices[np.argsort(lengths[indices], kind="stable")]


def _cut(order: Ids, lengths: Ids, micro_tokens: int) -> list[Ids]:
    """Consecutive examples as one batch, as many as fit into ``micro_tokens`` with padding.

    ``order`` must be sorted by length: then the last example of a batch decides its width.
    """
    batches = []
    widths = lengths[order].tolist()
    begin = 0
    for end in range(1, len(order) + 1):
        is_full = end == len(order) or (end + 1 - begin) * widths[end] > micro_tokens
        if is_full:
            batches.append(order[begin:end])
            begin = end
    return batches
