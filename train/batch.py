"""A micro-batch: what ``data`` produces and ``objective`` consumes."""

from __future__ import annotations

import torch

#: Three int64 tensors ``[B, T]``, padded on the right:
#: ``input_ids``; ``attention_mask``, 1 at real tokens and 0 at padding; ``labels``, aligned with the input
#: ids, ``NOT_COUNTED`` where a token is not a target. A micro-batch of training also has ``number``, int64
#: ``[1]``, its place in the plan of the run, from which noise is drawn.
Batch = dict[str, torch.Tensor]

#: The label of a token that no loss counts, as in PyTorch and transformers.
NOT_COUNTED = -100
