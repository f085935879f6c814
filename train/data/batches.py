"""From examples to micro-batches: what every step of a run sees is decided before the first step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from bitexport.errors import UsageError
from bitexport.train.batch import NOT_COUNTED, Batch
from bitexport.train.data.examples import Examples, Ids

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
        per_step: micro-batches per optimizer step, over all processes.
        budget: tokens to train on, padding not counted.

    Raises:
        UsageError: there is no example.
    """

    def __init__(
        self, examples: Examples, *, micro_tokens: int, per_step: int, budget: int, seed: int, pad_id: int
    ) -> None:
        self.examples = examples
        self.pad_id = pad_id
        lengths = examples.lengths
        if len(lengths) == 0:
            raise UsageError("data: no example is left for training; give more, or shorten sequence_length")
        self.batches: list[tuple[int, Ids]] = []  # number of the pass, indices of the examples
        tokens: list[int] = []  # of each micro-batch
        seen = 0
        pass_number = 0
        while seen < budget or len(self.batches) % per_step != 0:
            random = np.random.default_rng([seed, pass_number])
            for indices in _batches_of_pass(lengths, micro_tokens, random):
                self.batches.append((pass_number, indices))
                tokens.append(int(lengths[indices].sum()))
                seen += tokens[-1]
                if seen >= budget and len(self.batches) % per_step == 0:
                    break
            pass_number += 1
        self.steps = len(self.batches) // per_step
        #: Tokens seen after each number of steps, ``[steps + 1]``.
        self.tokens_after = np.concatenate([[0], np.cumsum(tokens)[per_step - 1 :: per_step]])

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        pass_number, indices = self.batches[index]
        batch = collate([self.examples.get(pass_number, int(i)) for i in indices], self.pad_id)
        return {**batch, "number": torch.tensor([index])}


def sample_batches(examples: Examples, micro_tokens: int, limit: int, pad_id: int) -> list[Batch]:
    """Micro-batches of at most ``limit`` examples, evenly spread over all of them and sorted by length."""
    lengths = examples.lengths
    if len(lengths) == 0:
        return []
    spread = np.linspace(0, len(lengths) - 1, min(limit, len(lengths)))
    chosen = np.unique(spread.astype(int))
    batches = _cut(_by_length(chosen, lengths), lengths, micro_tokens)
    return [collate([examples.get(0, int(i)) for i in batch], pad_id) for batch in batches]


def collate(examples: Sequence[tuple[Ids, Ids]], pad_id: int) -> Batch:
    """One batch from token ids and labels of each example, both ``[T]``, padded on the right."""
    B = len(examples)
    T = max(len(ids) for ids, _ in examples)
    input_ids = np.full((B, T), pad_id, dtype=np.int64)
    attention_mask = np.zeros((B, T), dtype=np.int64)
    labels = np.full((B, T), NOT_COUNTED, dtype=np.int64)
    for row, (example_ids, example_labels) in enumerate(examples):
        length = len(example_ids)
        input_ids[row, :length] = example_ids
        attention_mask[row, :length] = 1
        labels[row, :length] = example_labels
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(attention_mask),
        "labels": torch.from_numpy(labels),
    }


def _batches_of_pass(lengths: Ids, micro_tokens: int, random: np.random.Generator) -> list[Ids]:
    """A new order of all examples: shuffled, sorted by length within pools, cut, and the batches shuffled."""
    order = random.permutation(len(lengths))
    mean_length = max(1, int(lengths.mean()))
    pool_size = max(1, _POOL * micro_tokens // mean_length)
    batches: list[Ids] = []
    for begin in range(0, len(order), pool_size):
        pool = order[begin : begin + pool_size]
        batches += _cut(_by_length(pool, lengths), lengths, micro_tokens)
    return [batches[i] for i in random.permutation(len(batches))]


def _by_length(indices: Ids, lengths: Ids) -> Ids:
    return indices[np.argsort(lengths[indices], kind="stable")]


def _cut(order: Ids, lengths: Ids, micro_tokens: int) -> list[Ids]:
    """Consecutive examples as one batch, as many as fit into ``micro_tokens`` with padding.

    ``order`` must be sorted by length: then the last example of a batch decides its width.
    """
    batches = []
    begin = 0
    for end in range(1, len(order) + 1):
        is_full = end == len(order) or (end + 1 - begin) * lengths[order[end]] > micro_tokens
        if is_full:
            batches.append(order[begin:end])
            begin = end
    return batches
