"""Losses over a large vocabulary that never hold logits [tokens, V]: ``chunk_tokens`` of them at a time.

In the place of logits they take final hidden states [B, T, D] and the output head's weight [V, D] (no bias,
not sharded). Values and gradients are those of the namesakes in ``losses`` but for rounding; words
and shapes, too. Only counted positions are computed. The backward pass computes the logits once more and adds
every chunk to one float32 gradient of the weight. No gradient flows to the teacher.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bitexport.errors import UsageError
from bitexport.train.objective.losses import counted, precise, targets, tempered_kl


def chunked_next_token(hidden: Tensor, head_weight: Tensor, labels: Tensor, chunk_tokens: int) -> Tensor:
    """``losses.next_token``; beside the gradients some 4 * chunk_tokens * V floats at a time."""
    aims = targets(labels)

    def loss(logits: Tensor, part: slice) -> Tensor:
        return F.cross_entropy(precise(logits), aims[part], reduction="sum")

    return _mean(hidden[counted(labels)], head_weight, None, loss, chunk_tokens)


@torch.no_grad()
def chunked_top_k(hidden: Tensor, head_weight: Tensor, k: int, chunk_tokens: int) -> tuple[Tensor, Tensor]:
    """The k largest logits of ``hidden`` [..., D], [..., k], and their int64 indices; without gradient."""
    if k > (size := len(head_weight)):
        raise UsageError(f"top-k is {k}, but the vocabulary has {size} entries; choose a smaller k")
    chunks = torch.split(hidden.flatten(0, -2), chunk_tokens)
    values, indices = zip(*(F.linear(chunk, head_weight).topk(k) for chunk in chunks), strict=True)
    return torch.cat(values).reshape(*hidden.shape[:-1], k), torch.cat(indices).reshape(*hidden.shape[:-1], k)


def chunked_top_k_distillation(
    hidden: Tensor,
    head_weight: Tensor,
    values: Tensor,
    indices: Tensor,
    labels: Tensor,
    chunk_tokens: int,
    tau: float = 5.0,
    tau_squared: bool = False,
) -> Tensor:
    """Its namesake, by K logits a token, not by V; beside the gradients 3 * chunk_tokens * K * D floats."""
    theirs = values[keep := counted(labels)].detach()

    def loss(logits: Tensor, part: slice) -> Tensor:
        return tempered_kl(logits, theirs[part], tau, tau_squared) * len(logits)

    return _mean(hidden[keep], head_weight, indices[keep], loss, chunk_tokens)


def _mean(hidden: Tensor, weight: Tensor, rows: Tensor | None, loss: Any, chunk_tokens: int) -> Tensor:
    """``hidden`` [N, D]; ``rows`` int64 [N, K], those of ``weight`` that a token needs; ``loss`` is a sum."""
    lower = torch.is_autocast_enabled(hidden.device.type) and hidden.dtype != torch.float64
    dtype = torch.get_autocast_dtype(hidden.device.type) if lower else hidden.dtype
    parts = [slice(start, start + chunk_tokens) for start in range(0, len(hidden), chunk_tokens)]
    total: Tensor = _Chunks.apply(hidden, weight, rows, loss, parts, dtype)  # type: ignore[no-untyped-call]
    return total / max(len(hidden), 1)


class _Chunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, rows: Tensor | None, *how: Any) -> Tensor:
        ctx.save_for_backward(hidden, weight, rows)
        ctx.how = loss, parts, dtype = how
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        sums = [loss(_logits(hidden[part], weight, rows, part), part) for part in parts]
        return sum(sums, start=precise(hidden.new_zeros(())))

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor | None, ...]:
        (hidden, weight, rows), (loss, parts, dtype) = ctx.saved_tensors, ctx.how
        of_hidden, of_weight = torch.zeros_like(hidden), precise(torch.zeros_like(weight))
        hidden, weight = hidden.to(dtype), weight.detach().to(dtype)
        for part in parts:
            with torch.enable_grad():
                states = hidden[part].detach().requires_grad_()
                logits = _logits(states, weight, rows, part)
                total = loss(logits, part) * gradient[0]  # as grad_outputs it would import sympy
            of_hidden[part], of_logits = torch.autograd.grad(total, (states, logits))
            if rows is not None:
                outer = precise(of_logits)[..., None] * precise(states)[:, None]
                of_weight.index_add_(0, rows[part].flatten(), outer.flatten(0, 1))
            elif dtype == of_weight.dtype:
                of_weight.addmm_(of_logits.T, states)  # no second [V, D]
            else:
                of_weight += of_logits.T @ states
        return of_hidden, of_weight, None, None, None, None


def _logits(hidden: Tensor, weight: Tensor, rows: Tensor | None, part: slice) -> Tensor:
    return F.linear(hidden, weight) if rows is None else (weight[rows[part]] @ hidden[..., None])[..., 0]
