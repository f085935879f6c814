"""Separates rounding from error: PyTorch rounds as C++ did wherever its value is on a rounding edge.

A ternary model rounds every activation to one of 255 levels, one *step* apart. The *edge* between two levels
is the midpoint, where rounding changes from one to the other. Two correct implementations differ in the last
bits of a float, so a value within those bits of an edge is rounded up by one and down by the other. That
changes the layer's output by far more than the bits did, and more values cross an edge in the next layer:
after a few layers two correct implementations differ visibly, and so does PyTorch from itself when its
thread count changes. A comparison of logits cannot distinguish this from a small mistake.

Aligned, it can. While the reference runs, every activation that C++ rounded to the neighbouring level is
checked: if PyTorch's value is within ``tolerance`` steps of the edge, PyTorch adopts the decision of C++; if
not, it keeps its own, and the difference is counted as unexplained. The remaining difference between the
logits is float error or a mistake.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

#: How far from the edge, in steps of the 8-bit activation, a decision may be adopted. Float error stays
#: below 1e-3 of a step; a mistake in a weight, a scale or a norm moves values by whole steps.
TOLERANCE = 0.01


@dataclass
class Decisions:
    """Counts of the rounding decisions of one run.

    Attributes:
        compared: activations quantized on both sides.
        adopted: activations on an edge that C++ rounded the other way.
        farthest: the largest distance from the edge among them, in steps.
        unexplained: activations that differ without being on an edge.
        first_unexplained: GGUF name of the first weight that received an unexplained one.
    """

    compared: int = 0
    adopted: int = 0
    farthest: float = 0.0
    unexplained: int = 0
    first_unexplained: str | None = None


@contextmanager
def aligned_rounding(
    layers: Mapping[str, nn.Module],
    recorded: Mapping[str, npt.NDArray[np.int8]],
    tolerance: float = TOLERANCE,
) -> Iterator[Decisions]:
    """Within the block, the ternary layers round as ``recorded`` wherever their inputs are on an edge.

    Run the model once in the block, on one sequence: the tokens that were recorded.

    Args:
        layers: the model's ternary layers by the GGUF name of their weight.
        recorded: for each of these names, int8 ``[tokens, in]``: the activations that C++ multiplied.
        tolerance: largest distance from the edge, in steps.

    Raises:
        KeyError: a layer was not recorded.
        ValueError: a layer was recorded with a different number of tokens or columns.
    """
    decisions = Decisions()
    handles = [
        layer.register_forward_pre_hook(_hook(name, torch.from_numpy(recorded[name]), tolerance, decisions))
        for name, layer in layers.items()
    ]
    try:
        yield decisions
    finally:
        for handle in handles:
            handle.remove()


def _hook(name: str, recorded: torch.Tensor, tolerance: float, decisions: Decisions):  # type: ignore[no-untyped-def]
    def align(_module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        (x,) = inputs  # (1, T, in)
        if x.shape[1:] != recorded.shape:
            raise ValueError(
                f"{name}: {tuple(recorded.shape)} activations were recorded, the reference has "
                f"{tuple(x.shape[1:])}"
            )
        return (_align(name, x, recorded, tolerance, decisions),)

    return align


def _align(
    name: str, x: torch.Tensor, recorded: torch.Tensor, tolerance: float, decisions: Decisions
) -> torch.Tensor:
    """Replace the values of ``x`` on an edge by values that quantize to ``recorded``; update ``decisions``.

    The arithmetic is that of transformers' ActQuant:
    s = 127 / max(max|x|, 1e-5), q = clamp(round(x s), -128, 127).
    """
    largest = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-5)  # (1, T, 1)
    scale = 127 / largest
    exact = x * scale
    python = exact.round().clamp(-128, 127)
    cpp = recorded.to(x.dtype).unsqueeze(0)  # (1, T, in)
    differs = python != cpp
    distance = (exact - (python + cpp) / 2).abs()
    on_edge = differs & ((python - cpp).abs() == 1) & (distance <= tolerance)

    decisions.compared += x.numel()
    unexplained = int((differs & ~on_edge).sum())
    if unexplained:
        decisions.first_unexplained = decisions.first_unexplained or name
        decisions.unexplained += unexplained
    if not bool(on_edge.any()):
        return x
    decisions.adopted += int(on_edge.sum())
    decisions.farthest = max(decisions.farthest, float(distance[on_edge].max()))
    # Never beyond the largest value, which sets the scale.
    return torch.where(on_edge, (cpp / scale).clamp(-largest, largest), x)
