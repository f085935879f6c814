"""A micro-batch: what ``data`` produces and ``objective`` consumes."""

from __future__ import annotations

import torch

#: Three int64 tensors ``[B, T]``, padded on the right:
#: ``input_ids``; ``attention_mask``, 1 at real tokens and 0 at padding; ``labels``, aligned with the input
#: ids, ``NOT_COUNTED`` where a token is not a target.
#: ``targets`` [N] are the tokens that count, and ``positions`` [N] the places in [B * T] that predict them:
#: what ``labels`` say, found before the batch is on an accelerator.
#: A row with several examples has 1, 2, ... in ``attention_mask`` at the tokens of each, and ``position_ids``
#: [B, T], which begin at 0 in each.
#: A micro-batch of a plan also has ``shares``, float32 ``[len(UNITS)]``: how much of its optimizer step's
#: tokens it holds, in each of :data:`UNITS`, relative to a micro-batch of average size. The mean of a step's
#: shares is 1, over all processes, so that the mean over micro-batches of share * (mean of a term) is the
#: term's mean over the step's tokens.
#: With block diffusion a batch also has what :meth:`bitexport.train.objective.diffusion.Noise.add` adds;
#: without it, ``shares`` has no ``masked``.
Batch = dict[str, torch.Tensor]

#: What terms of a loss are means over: tokens that are targets, tokens that are not padding, examples, and
#: the tokens that block diffusion predicts.
UNITS = ("targets", "tokens", "examples", "masked")

#: The label of a token that no loss counts, as in PyTorch and transformers.
NOT_COUNTED = -100
