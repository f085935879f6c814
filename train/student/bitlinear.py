"""A linear layer that quantizes in every forward pass: ternary weights, 8-bit activations, straight through.

With blend 1 it computes what transformers' AutoBitLinear computes, to the last bit, with fewer passes over
memory: on a processor the time goes into exactly these passes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class _StraightThrough(torch.autograd.Function):
    """The gradient of what comes out is that of what went in, whatever ``forward`` rounded."""

    @staticmethod
    def backward(_context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


class _QuantizeWeight(_StraightThrough):
    @staticmethod
    def forward(_context: Any, weight: torch.Tensor, blend: float) -> torch.Tensor:
        master = weight.float()
        quantized = master.abs()
        scale = 1.0 / quantized.mean().clamp_(min=1e-5)
        torch.mul(master, scale, out=quantized).round_().clamp_(-1, 1).div_(scale)
        return _blended(master, quantized, blend).to(weight.dtype)


class _QuantizeActivation(_StraightThrough):
    @staticmethod
    def forward(_context: Any, x: torch.Tensor, blend: float) -> torch.Tensor:
        exact = x.float()
        # max|x| by two reductions, which PyTorch vectorizes; a norm of order infinity takes 20 times as long.
        largest = torch.maximum(exact.amax(dim=-1, keepdim=True), exact.amin(dim=-1, keepdim=True).neg_())
        scale = 127 / largest.clamp_(min=1e-5)
        # No clamp: |x| <= largest, so that x scale rounds to no more than 127, whatever the last bits say.
        quantized = (exact * scale).round_().div_(scale)
        return _blended(exact, quantized, blend).to(x.dtype)


def _blended(exact: torch.Tensor, quantized: torch.Tensor, blend: float) -> torch.Tensor:
    """``exact + blend * (quantized - exact)``, written over ``quantized``."""
    return quantized if blend == 1 else quantized.sub_(exact).mul_(blend).add_(exact)


def quantize_weight(weight: torch.Tensor, blend: float = 1.0) -> torch.Tensor:
    """``w + blend * (Q(w) - w)``, gradient that of w; Q gives trits times mean|w|, in float32, any shape."""
    return _QuantizeWeight.apply(weight, blend)  # type: ignore[no-any-return, no-untyped-call]


def quantize_activation(x: torch.Tensor, blend: float = 1.0) -> torch.Tensor:
    """``x + blend * (Q(x) - x)``, gradient that of x [..., in]; Q rounds to max|x| / 127 a token, float32."""
    return _QuantizeActivation.apply(x, blend)  # type: ignore[no-any-return, no-untyped-call]


class BitLinear(nn.Linear):
    """``nn.Linear`` with quantized weights and activations.

    ``blend`` says how much, from 0 (exactly ``nn.Linear``) to 1. It is not in the state dict: what is saved
    means 1.
    """

    blend: float = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.blend == 0:
            return F.linear(x, self.weight, self.bias)
        weight = quantize_weight(self.weight, self.blend)
        return F.linear(quantize_activation(x, self.blend), weight, self.bias)


def set_blend(model: nn.Module, value: float) -> None:
    """Set the blend, 0 to 1, of every BitLinear in ``model``."""
    for module in model.modules():
        if isinstance(module, BitLinear):
            module.blend = float(value)


def get_blend(model: nn.Module) -> float:
    """The blend of ``model``'s BitLinear layers; 0 where it has none."""
    return next((module.blend for module in model.modules() if isinstance(module, BitLinear)), 0.0)
