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

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bitexport.checkpoint.block_diffusion import BlockDiffusion
from bitexport.train.batch import NOT_COUNTED, Batch
from bitexport.train.config import TrainConfig


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
        ``input_ids``, ``position_ids`` and ``labels``, int64 ``[B, L]``, and ``attention_mask``, float32
        ``[B, 1, L, L]``, to be added to the scores of attention. ``labels`` are as in a :data:`Batch`:
        logits of position t are compared with ``labels[t + 1]``. L is two or three times T, rounded up to
        whole blocks.
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
    last = real.sum(1, keepdim=True) - 1  # [B, 1], the position of the last token
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
        "attention_mask": _attention_mask(whole["attention_mask"], count, settings.block_size),
        "labels": all_labels,
    }


def _attention_mask(real: Tensor, copies: int, block_size: int) -> Tensor:
    """Float32 ``[B, 1, L, L]``: 0 where a query (rows) sees a key, else the lowest number; see the top."""
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
