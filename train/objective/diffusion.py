"""Block diffusion: the student learns to fill in a block of tokens at once.

The objective of Fast-dLLM v2 (arXiv 2509.26328). A text is cut into blocks, and some tokens of every block
are replaced by the mask token. The student sees one sequence that has noisy copies of the text and then the
text itself, the clean copy:

- a noisy block attends to itself, in both directions, and to the clean blocks before it;
- a clean block attends to itself, in both directions, and to the clean blocks before it.

That is what decoding does: the clean blocks are its cache, a noisy block is the one in progress. Two
complementary noisy copies mask every token once.

Tokens are shifted, as in any language model: the logits of a position predict the token after it. So the
first token of a block is predicted by the last position of the *clean* block before it, whatever is masked;
every other token by the position before it in the noisy copy, where it is masked. What follows the end of a
text in its last block is the end again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bitexport.checkpoint.block_diffusion import BlockDiffusion, diffusion_settings
from bitexport.train.batch import NOT_COUNTED, Batch
from bitexport.train.config import TrainConfig
from bitexport.train.objective.losses import Targets, as_targets

# Distinguishes the noise from other random numbers of the same seed.
_NOISE = 2
# In front of the names of what a batch gets.
_PREFIX = "noisy_"


@dataclass(frozen=True)
class Noise:
    """Prepares batches for block diffusion, before they are on an accelerator.

    Attributes:
        config: how much is masked, and the seed.
        settings: blocks, and the mask token.
        ends: the tokens that end a text.
    """

    config: TrainConfig
    settings: BlockDiffusion
    ends: frozenset[int]

    def add(self, batch: Batch, number: int) -> Batch:
        """``batch`` with the noisy sequences that the student sees, the same for the same ``number``.

        ``noisy_input_ids`` and ``noisy_position_ids`` [B, L], see :func:`noisy_sequences`; ``noisy_real``
        [B, T], 1 at the real tokens of one copy; ``noisy_targets`` [N], the tokens to predict, and
        ``noisy_positions`` [N], the places in [B * L] that predict them.
        """
        seed = [self.config.seed, number, _NOISE]
        noisy = noisy_sequences(batch, self.settings, self.config, self.ends, seed)
        positions, targets = as_targets(noisy.pop("labels"))
        noisy |= {"positions": positions, "targets": targets}
        return {**batch, **{_PREFIX + name: value for name, value in noisy.items()}}

    def predicted(self, batch: Batch) -> int:
        """How many tokens a batch of :meth:`add` predicts."""
        return len(batch[_PREFIX + "targets"])

    def forward_options(self, batch: Batch) -> tuple[dict[str, Tensor], Targets]:
        """The arguments of the forward pass for a batch of :meth:`add`, on any device, and its targets."""
        ids, real = batch[_PREFIX + "input_ids"], batch[_PREFIX + "real"]
        options = {"input_ids": ids, "position_ids": batch[_PREFIX + "position_ids"]}
        copies = ids.shape[1] // real.shape[1]
        options["attention_mask"] = attention_mask(real, copies, self.settings.block_size)
        return options, Targets(batch[_PREFIX + "positions"], batch[_PREFIX + "targets"])


def noise_of(config: TrainConfig, model: Any) -> Noise | None:
    """The noise of a run, from the student's ``model.config``; None if it has no block diffusion."""
    settings = diffusion_settings(model.config.to_dict()) if config.diffusion_weight else None
    return None if settings is None else Noise(config, settings, _end_tokens(model.config))


def _end_tokens(config: Any) -> frozenset[int]:
    """The ids that end a text, by a model's ``config``, which has none, one or several."""
    ends = getattr(config, "eos_token_id", None)
    if ends is None:
        return frozenset()
    return frozenset(ends if isinstance(ends, list) else [ends])


def noisy_sequences(
    batch: Batch, settings: BlockDiffusion, config: TrainConfig, ends: Collection[int], seed: list[int]
) -> dict[str, Tensor]:
    """The sequences that the student sees instead of ``batch``, and what it is to predict.

    Args:
        batch: B examples of T tokens.
        settings: blocks, and the mask token.
        config: how much is masked, and whether in two complementary copies.
        ends: the tokens that end a text.
        seed: of the noise.

    Returns:
        ``input_ids``, ``position_ids`` and ``labels``, int64 ``[B, L]``, and ``real``, int64: 1 at the real
        tokens of one copy, for :func:`attention_mask`. ``labels`` are as in a :data:`Batch`: logits of
        position t are compared with ``labels[t + 1]``. L is two or three times T, rounded up to whole blocks.
    """
    whole = whole_blocks(batch, settings.block_size, ends)
    masked = draw_masked(whole["labels"], settings.block_size, config, seed)  # [B, T]
    copies = [masked]
    if config.diffusion_complementary:
        copies.append((whole["labels"] != NOT_COUNTED) & ~masked)
    return _sequences(whole, copies, settings)


def whole_blocks(batch: Batch, block_size: int, ends: Collection[int]) -> Batch:
    """``batch`` padded to whole blocks; a text repeats its last token until the end of its last block.

    Only texts that end with a counted token of ``ends`` do; others may have been cut anywhere.
    """
    T = batch["input_ids"].shape[1]
    missing = -T % block_size
    ids = F.pad(batch["input_ids"], (0, missing))
    real = F.pad(batch["attention_mask"], (0, missing))
    labels = F.pad(batch["labels"], (0, missing), value=NOT_COUNTED)
    # [B, 1], the position of the last token; a row of padding has none, and no label either
    last = (real.sum(1, keepdim=True) - 1).clamp(min=0)
    token = labels.gather(1, last)  # NOT_COUNTED is no token
    ended = torch.isin(token, torch.tensor(sorted(ends), dtype=token.dtype, device=token.device))
    positions = torch.arange(ids.shape[1], device=ids.device)
    same_block = positions // block_size == last // block_size
    repeated = ended & same_block & (positions > last)  # [B, T]
    return {
        "input_ids": torch.where(repeated, token, ids),
        "attention_mask": real.masked_fill(repeated, 1),
        "labels": torch.where(repeated, token, labels),
    }


def draw_masked(labels: Tensor, block_size: int, config: TrainConfig, seed: list[int]) -> Tensor:
    """Bool ``[B, T]``: the tokens to mask. Every block draws its fraction, every token whether it is."""
    B, T = labels.shape
    random = np.random.default_rng(seed)
    fractions = random.uniform(config.diffusion_min_masked, config.diffusion_max_masked, (B, T // block_size))
    chosen = random.random((B, T)) < fractions.repeat(block_size, axis=1)
    return torch.from_numpy(chosen).to(labels.device) & (labels != NOT_COUNTED)


def _sequences(whole: Batch, copies: list[Tensor], settings: BlockDiffusion) -> dict[str, Tensor]:
    """The noisy ``copies``, each given by the tokens that are masked, then the clean one."""
    ids, labels = whole["input_ids"], whole["labels"]
    T = ids.shape[1]
    positions = torch.arange(T, device=ids.device)
    first_of_block = positions % settings.block_size == 0
    at_clean = first_of_block if settings.token_shift else torch.zeros_like(first_of_block)
    parts, targets = [], []
    for masked in copies:
        parts.append(ids.masked_fill(masked, settings.mask_token_id))
        targets.append(labels.masked_fill(~masked | at_clean, NOT_COUNTED))
    clean_targets = labels.masked_fill(~at_clean, NOT_COUNTED)
    clean_targets[:, 0] = NOT_COUNTED  # nothing is before the first token
    all_labels = torch.cat([*targets, clean_targets], dim=1)
    if not settings.token_shift:
        all_labels = F.pad(all_labels[:, :-1], (1, 0), value=NOT_COUNTED)  # a loss shifts by one
    count = len(copies) + 1
    return {
        "input_ids": torch.cat([*parts, ids], dim=1),
        "position_ids": positions.repeat(count).expand(len(ids), -1),
        "real": whole["attention_mask"],
        "labels": all_labels,
    }


def attention_mask(real: Tensor, copies: int, block_size: int) -> Tensor:
    """Float32 ``[B, 1, L, L]``, to be added to the scores of attention; see the top.

    0 where a query (rows) sees a key, else the lowest number; ``real`` [B, T] is that of
    :func:`noisy_sequences`, and L is T * ``copies``.
    """
    T = real.shape[1]
    place = torch.arange(copies * T, device=real.device)
    copy = place // T
    block = place % T // block_size
    same_block = (copy[:, None] == copy) & (block[:, None] == block)
    clean_before = (copy == copies - 1) & (block < block[:, None])
    visible = (same_block | clean_before) & real.bool().repeat(1, copies)[:, None]  # [B, L, L]
    visible |= torch.eye(copies * T, dtype=torch.bool, device=real.device)  # padding sees at least itself
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(visible.shape, device=real.device).masked_fill(~visible, lowest)[:, None]
