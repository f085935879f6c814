"""A linear layer that quantizes in every forward pass: ternary weights, 8-bit activations, straight-through.

With blend 1 it computes exactly, to the last bit, what transformers' AutoBitLinear computes, with fewer
passes over memory, which dominate the time on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class _StraightThrough(torch.autograd.Function):
    """Passes the gradient of the output to the input unchanged, as if ``forward`` did not round."""

    @staticmethod
    def backward(_context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


class _QuantizeWeight(_StraightThrough):
    @staticmethod
    def forward(_context: Any, weight: torch.Tensor, blend: float) -> torch.Tensor:
        master = weight.float()
        quantized = master.abs()
        scale = 1.0 / quantized.mean().clamp_(min=1e-5)
        torch.mul(master, scale, out=quantized)
        quantized.round_().clamp_(-1, 1).div_(scale)
        return _blended(master, quantized, blend).to(weight.dtype)


class _QuantizeActivation(_StraightThrough):
    @staticmethod
    def forward(_context: Any, x: torch.Tensor, blend: float) -> torch.Tensor:
        exact = x.float()
        # max|x| as two reductions, which PyTorch vectorizes; a norm of order infinity takes 20 times as long.
        maximum = exact.amax(dim=-1, keepdim=True)
        minimum = exact.amin(dim=-1, keepdim=True)
        largest = torch.maximum(maximum, minimum.neg_())
        scale = 127 / largest.clamp_(min=1e-5)
        # No clamp: |x| <= largest, so x * scale rounds to at most 127 even with an error in the last bits.
        quantized = (exact * scale).round_().div_(scale)
        return _blended(exact, quantized, blend).to(x.dtype)


def _blended(exact: torch.Tensor, quantized: torch.Tensor, blend: float) -> torch.Tensor:
    """``exact + blend * (quantized - exact)``; overwrites ``quantized``."""
    if blend == 1:
        return quantized
    return quantized.sub_(exact).mul_(blend).add_(exact)


def quantize_weight(weight: torch.Tensor, blend: float = 1.0) -> torch.Tensor:
    """``w + blend * (Q(w) - w)`` with straight-through gradient, for any shape.

    Q(w) = mean|w| * clamp(round(w / mean|w|), -1, 1), computed in float32; mean|w| is over the whole tensor
    (arXiv 2402.17764).
    """
    return _QuantizeWeight.apply(weight, blend)  # type: ignore[no-any-return, no-untyped-call]


def quantize_activation(x: torch.Tensor, blend: float = 1.0) -> torch.Tensor:
    """``x + blend * (Q(x) - x)`` with straight-through gradient, for ``x`` [..., in].

    Q rounds to multiples of max|x| / 127, computed in float32; max|x| is per token (arXiv 2402.17764).
    """
    return _QuantizeActivation.apply(x, blend)  # type: ignore[no-any-return, no-untyped-call]


class BitLinear(nn.Linear):
    """``nn.Linear`` with quantized weights and activations.

    ``blend`` goes from 0 (exactly ``nn.Linear``) to 1 (fully quantized). It is not in the state dict: a saved
    model is meant to run with 1.
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
    """The blend of ``model``'s BitLinear layers; 0 if it has none."""
    for module in model.modules():
        if isinstance(module, BitLinear):
            return module.blend
    return 0.0
