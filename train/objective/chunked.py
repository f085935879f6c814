"""Losses over a large vocabulary that hold logits of only ``chunk_tokens`` tokens at a time.

Instead of logits, the functions accept final hidden states [B, T, D] and the output head's weight [V, D] (no
bias, not sharded). Up to rounding, values and gradients equal those of the corresponding functions in
``losses``, whose docstrings define the shapes. Only counted positions are computed. The backward pass
computes the logits a second time and adds every chunk to one float32 gradient of the weight. No gradient
flows to the teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bitexport.errors import UsageError
from bitexport.train.objective.losses import Targets, as_targets, at_least_float32, at_positions, tempered_kl

#: The sum (not the mean) of a loss over the tokens of a chunk, from their logits and their place in the
#: batch.
ChunkLoss = Callable[[Tensor, slice], Tensor]


def chunked_next_token(
    hidden: Tensor, head_weight: Tensor, labels: Tensor | Targets, chunk_tokens: int
) -> Tensor:
    """``losses.next_token``; needs about 4 * chunk_tokens * V floats in addition to the gradients."""
    positions, target_ids = as_targets(labels)

    def loss(logits: Tensor, chunk: slice) -> Tensor:
        return F.cross_entropy(at_least_float32(logits), target_ids[chunk], reduction="sum")

    return _mean_over_chunks(at_positions(hidden, positions), head_weight, None, loss, chunk_tokens)


@torch.no_grad()
def chunked_top_k(hidden: Tensor, head_weight: Tensor, k: int, chunk_tokens: int) -> tuple[Tensor, Tensor]:
    """The k largest logits of ``hidden`` [..., D] and their int64 indices, both [..., k]; without gradient.

    Raises:
        UsageError: the vocabulary has fewer than k entries.
    """
    vocabulary = len(head_weight)
    if k > vocabulary:
        raise UsageError(f"top-k is {k}, but the vocabulary has {vocabulary} entries; choose a smaller k")
    values = []
    indices = []
    for chunk in torch.split(hidden.flatten(0, -2), chunk_tokens):
        top = F.linear(chunk, head_weight).topk(k)
        values.append(top.values)
        indices.append(top.indices)
    shape = (*hidden.shape[:-1], k)
    return torch.cat(values).reshape(shape), torch.cat(indices).reshape(shape)


def chunked_top_k_distillation(
    hidden: Tensor,
    head_weight: Tensor,
    values: Tensor,
    indices: Tensor,
    labels: Tensor | Targets,
    chunk_tokens: int,
    tau: float = 5.0,
    tau_squared: bool = False,
) -> Tensor:
    """``losses.top_k_logits_distillation``, computing K logits per token instead of V.

    Needs 3 * chunk_tokens * K * D floats in addition to the gradients.
    """
    positions = as_targets(labels).positions
    teacher_logits = at_positions(values, positions).detach()  # [N, K]

    def loss(logits: Tensor, chunk: slice) -> Tensor:
        return tempered_kl(logits, teacher_logits[chunk], tau, tau_squared) * len(logits)

    chosen = at_positions(indices, positions)
    return _mean_over_chunks(at_positions(hidden, positions), head_weight, chosen, loss, chunk_tokens)


@dataclass(frozen=True)
class _Chunking:
    """How ``_ChunkedLoss`` proceeds: which tokens at a time, which loss, and the dtype of the logits."""

    chunks: list[slice]
    loss: ChunkLoss
    dtype: torch.dtype


def _mean_over_chunks(
    hidden: Tensor, weight: Tensor, rows: Tensor | None, loss: ChunkLoss, chunk_tokens: int
) -> Tensor:
    """The mean of ``loss`` over N tokens.

    Args:
        hidden: [N, D].
        weight: [V, D].
        rows: int64 [N, K], the rows of ``weight`` that each token needs; None: all.
    """
    device = hidden.device.type
    dtype = hidden.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    chunks = [slice(start, start + chunk_tokens) for start in range(0, len(hidden), chunk_tokens)]
    chunking = _Chunking(chunks, loss, dtype)
    total: Tensor = _ChunkedLoss.apply(hidden, weight, rows, chunking)  # type: ignore[no-untyped-call]
    return total / max(len(hidden), 1)


class _ChunkedLoss(torch.autograd.Function):
    """The sum of a loss over all chunks, without keeping the logits for the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, rows: Tensor | None, chunking: _Chunking) -> Tensor:
        ctx.save_for_backward(hidden, weight, rows)
        ctx.chunking = chunking
        hidden, weight = hidden.to(chunking.dtype), weight.to(chunking.dtype)
        total = at_least_float32(hidden.new_zeros(()))
        for chunk in chunking.chunks:
            logits = _logits(hidden[chunk], weight, None if rows is None else rows[chunk])
            total = total + chunking.loss(logits, chunk)
        return total

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, rows = ctx.saved_tensors
        chunking: _Chunking = ctx.chunking
        hidden_gradient = torch.zeros_like(hidden)
        weight_gradient = at_least_float32(torch.zeros_like(weight))
        hidden, weight = hidden.to(chunking.dtype), weight.detach().to(chunking.dtype)
        for chunk in chunking.chunks:
            chunk_rows = None if rows is None else rows[chunk]
            with torch.enable_grad():
                states = hidden[chunk].detach().requires_grad_()
                logits = _logits(states, weight, chunk_rows)
                # Multiplied here: torch.autograd.grad would import sympy to check grad_outputs.
                loss = chunking.loss(logits, chunk) * gradient[0]
            hidden_gradient[chunk], logits_gradient = torch.autograd.grad(loss, (states, logits))
            if chunk_rows is not None:
                # [n, K, 1] * [n, 1, D]: the gradient of each row that a token needs.
                outer = at_least_float32(logits_gradient)[..., None] * at_least_float32(states)[:, None]
                weight_gradient.index_add_(0, chunk_rows.flatten(), outer.flatten(0, 1))
            elif chunking.dtype == weight_gradient.dtype:
                weight_gradient.addmm_(logits_gradient.T, states)  # without a second [V, D]
            else:
                weight_gradient += logits_gradient.T @ states
        return hidden_gradient, weight_gradient, None, None


def _logits(hidden: Tensor, weight: Tensor, rows: Tensor | None) -> Tensor:
    """[n, V] from ``hidden`` [n, D]; with ``rows`` [n, K] only those entries, [n, K]."""
    if rows is None:
        return F.linear(hidden, weight)
    return (weight[rows] @ hidden[..., None])[..., 0]
