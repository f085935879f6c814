"""Causal attention for training: no mask is made, and nothing waits for the accelerator.

A causal model never looks to the right, so padding on the right needs no mask; transformers' own masks are
read on the host in every forward pass. Only rows with several examples get a mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from bitexport.train.batch import Batch

#: The name under which transformers finds it. It has no function that makes masks, so that none is made.
CAUSAL = "bitexport_causal"

AttentionInterface.register(CAUSAL, sdpa_attention_forward)


def attention_options(inputs: Batch, implementation: str, dtype: torch.dtype) -> dict[str, Any]:
    """The arguments ``attention_mask`` and ``position_ids`` of a forward pass.

    Args:
        implementation: the models' attention, :data:`CAUSAL` or one of transformers'.
        dtype: of an additive mask.
    """
    mask = inputs["attention_mask"]
    if "position_ids" not in inputs:
        return {"attention_mask": None if implementation == CAUSAL else mask}
    allowed = within_examples(mask)
    if implementation == "eager":  # adds it to the scores
        zero = torch.zeros((), dtype=dtype, device=mask.device)
        lowest = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=mask.device)
        allowed = torch.where(allowed, zero, lowest)
    return {"attention_mask": allowed, "position_ids": inputs["position_ids"]}


def within_examples(mask: Tensor) -> Tensor:
    """Bool ``[B, 1, T, T]``: each position sees itself and those before it of the same number in ``mask``."""
    T = mask.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=mask.device).tril()
    same = mask[:, :, None] == mask[:, None]
    return (causal & same)[:, None]
