"""A linear layer that quantizes in every forward pass: ternary weights, 8-bit activations, straight-through.

With blend 1 it computes exactly, to the last bit, what transformers' AutoBitLinear computes, with fewer
passes over memory, which dominate the time on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

#: 0 to 1: a number, or a scalar tensor.
Blend = float | torch.Tensor


class _StraightThrough(torch.autograd.Function):
    """Passes the gradient of the output to the input unchanged, as if ``forward`` did not round."""

    @staticmethod
    def backward(_context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


class _QuantizeWeight(_StraightThrough):
    @staticmethod
    def forward(_context: Any, weight: torch.Tensor, blend: Blend) -> torch.Tensor:
        master = weight.float()
        quantized = master.abs()
        scale = 1.0 / quantized.mean().clamp_(min=1e-5)
        torch.mul(master, scale, out=quantized)
        quantized.round_().clamp_(-1, 1).div_(scale)
        return _blended(master, quantized, blend).to(weight.dtype)


class _QuantizeActivation(_StraightThrough):
    @staticmethod
    def forward(_context: Any, x: torch.Tensor, blend: Blend) -> torch.Tensor:
        exact = x.float()
        # max|x| as two reductions, which PyTorch vectorizes; a norm of order infinity takes 20 times as long.
        maximum = exact.amax(dim=-1, keepdim=True)
        minimum = exact.amin(dim=-1, keepdim=True)
        largest = torch.maximum(maximum, minimum.neg_())
        scale = 127 / largest.clamp_(min=1e-5)
        # No clamp: |x| <= largest, so x * scale rounds to at most 127 even with an error in the last bits.
        quantized = (exact * scale).round_().div_(scale)
        return _blended(exact, quantized, blend).to(x.dtype)


class _UseQuantized(torch.autograd.Function):
    """The quantized weight, whose gradient goes to the weight itself, as from :func:`quantize_weight`."""

    @staticmethod
    def forward(context: Any, weight: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
        context.dtype = weight.dtype
        return quantized.view_as(quantized)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0].to(context.dtype), None


def _blended(exact: torch.Tensor, quantized: torch.Tensor, blend: Blend) -> torch.Tensor:
    """``exact + blend * (quantized - exact)``; overwrites ``quantized``."""
    if _is(blend, 1):
        return quantized
    return quantized.sub_(exact).mul_(blend).add_(exact)


def _is(blend: Blend, value: int) -> bool:
    return not isinstance(blend, torch.Tensor) and blend == value


def quantize_weight(weight: torch.Tensor, blend: Blend = 1.0) -> torch.Tensor:
    """``w + blend * (Q(w) - w)`` with straight-through gradient, for any shape.

    Q(w) = mean|w| * clamp(round(w / mean|w|), -1, 1), computed in float32; mean|w| is over the whole tensor
    (arXiv 2402.17764).
    """
    return _QuantizeWeight.apply(weight, blend)  # type: ignore[no-any-return, no-untyped-call]


def quantize_activation(x: torch.Tensor, blend: Blend = 1.0) -> torch.Tensor:
    """``x + blend * (Q(x) - x)`` with straight-through gradient, for ``x`` [..., in].

    Q rounds to multiples of max|x| / 127, computed in float32; max|x| is per token (arXiv 2402.17764).
    """
    return _QuantizeActivation.apply(x, blend)  # type: ignore[no-any-return, no-untyped-call]


class BitLinear(nn.Linear):
    """``nn.Linear`` with quantized weights and activations.

    ``blend`` goes from 0 (exactly ``nn.Linear``) to 1 (fully quantized). It is not in the state dict: a saved
    model is meant to run with 1. Between the two it is a scalar tensor, so that compiled code stays the same.
    """

    blend: Blend = 1.0
    #: The quantized weight, while :func:`hold_quantized` keeps it.
    held: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        blend = self.blend
        if _is(blend, 0):
            return F.linear(x, self.weight, self.bias)
        if self.held is None:
            weight = quantize_weight(self.weight, blend)
        else:
            weight = _UseQuantized.apply(self.weight, self.held)  # type: ignore[no-untyped-call]
        return F.linear(quantize_activation(x, blend), weight, self.bias)


def set_blend(model: nn.Module, value: float) -> None:
    """Set the blend, 0 to 1, of every BitLinear in ``model``."""
    tensor: torch.Tensor | None = None
    for module in model.modules():
        if isinstance(module, BitLinear):
            if value not in (0, 1) and tensor is None:
                tensor = torch.full((), value, dtype=torch.float32, device=module.weight.device)
            module.blend = float(value) if tensor is None else tensor


def get_blend(model: nn.Module) -> float:
    """The blend of ``model``'s BitLinear layers; 0 if it has none."""
    for module in model.modules():
        if isinstance(module, BitLinear):
            return float(module.blend)
    return 0.0


@torch.no_grad()
def hold_quantized(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Quantize all weights now, for every forward pass until :func:`release_quantized`; they must not change.

    Values and gradients are those without it, to the bit. Costs memory for the quantized weights.

    Args:
        dtype: that of autocast, if the forward passes run under it.
    """
    for module in model.modules():
        if isinstance(module, BitLinear) and not _is(module.blend, 0):
            quantized = quantize_weight(module.weight.detach(), module.blend)
            module.held = quantized if dtype is None else quantized.to(dtype)


def release_quantized(model: nn.Module) -> None:
    """Forget what :func:`hold_quantized` kept."""
    for module in model.modules():
        if isinstance(module, BitLinear):
            module.held = None
