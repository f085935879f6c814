"""Tells rounding from error: lets PyTorch round the way C++ did, where its own value lies on the edge.

A ternary model rounds every activation to one of 255 steps. Two correct implementations differ in the last
bits of a float, and where a value lies within those bits of the middle between two steps, one rounds it up
and the other down. That moves the layer's output by far more than the bits did, so that more values land on
the other side in the next layer: after a few layers two correct implementations differ visibly, and so does
PyTorch from itself when its thread count changes. A comparison of logits cannot tell this from a small
mistake.

Aligned, it can. While the reference runs, each value that C++ rounded to the neighbouring step is looked
at: if PyTorch's own value is within ``tolerance`` steps of the edge, it takes the decision of C++; if not,
it keeps its own and the difference is counted as unexplained. What is left between the logits is float
error, or a mistake.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

#: How far from the edge, in steps of the 8-bit activation, a decision may be taken over. Float error stays
#: below 1e-3 of a step; a mistake in a weight, a scale or a norm moves values by whole steps.
TOLERANCE = 0.01


@dataclass
class Decisions:
    """What the rounding decisions of a run came to.

    Attributes:
        compared: activations quantized on both sides.
        adopted: those on the edge that C++ rounded the other way.
        farthest: the largest distance from the edge among them, in steps.
        unexplained: those that differ without being on the edge.
        first_unexplained: the GGUF name of the first weight that received one.
    """

    compared: int = 0
    adopted: int = 0
    farthest: float = 0.0
    unexplained: int = 0
    first_unexplained: str | None = None
    by_weight: dict[str, int] = field(default_factory=dict)


@contextmanager
def aligned_rounding(
    layers: Mapping[str, nn.Module],
    recorded: Mapping[str, npt.NDArray[np.int8]],
    tolerance: float = TOLERANCE,
) -> Iterator[Decisions]:
    """Within the block, the ternary layers round as ``recorded`` where they are on the edge.

    Run the model once, on one sequence: the tokens that were recorded.

    Args:
        layers: the model's ternary layers by the GGUF name of their weight.
        recorded: for each of these names, int8 [tokens, in], what C++ multiplied it with.
        tolerance: steps from the edge.

    Raises:
        KeyError: a layer was not recorded.
        ValueError: it was recorded for another number of tokens or columns.
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


def _hook(name: str, theirs: torch.Tensor, tolerance: float, decisions: Decisions):  # type: ignore[no-untyped-def]
    def align(_module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        (x,) = inputs  # (1, T, in)
        if x.shape[1:] != theirs.shape:
            raise ValueError(
                f"{name}: recorded {tuple(theirs.shape)} activations, the reference has {tuple(x.shape[1:])}"
            )
        return (_align(name, x, theirs, tolerance, decisions),)

    return align


def _align(
    name: str, x: torch.Tensor, theirs: torch.Tensor, tolerance: float, decisions: Decisions
) -> torch.Tensor:
    """``x`` with the values on the edge replaced by what quantizes to ``theirs``; counts into ``decisions``.

    The arithmetic is that of transformers' ActQuant:
    s = 127 / max(max|x|, 1e-5), q = clamp(round(x s), -128, 127).
    """
    largest = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-5)  # (1, T, 1)
    scale = 127 / largest
    exact = x * scale
    ours = exact.round().clamp(-128, 127)
    other = theirs.to(x.dtype).unsqueeze(0)  # (1, T, in)
    differs = ours != other
    distance = (exact - (ours + other) / 2).abs()
    on_edge = differs & ((ours - other).abs() == 1) & (distance <= tolerance)

    decisions.compared += x.numel()
    unexplained = int((differs & ~on_edge).sum())
    if unexplained:
        decisions.first_unexplained = decisions.first_unexplained or name
        decisions.unexplained += unexplained
        decisions.by_weight[name] = unexplained
    if not bool(on_edge.any()):
        return x
    decisions.adopted += int(on_edge.sum())
    decisions.farthest = max(decisions.farthest, float(distance[on_edge].max()))
    # Never beyond the largest value, which sets the scale.
    return torch.where(on_edge, (other / scale).clamp(-largest, largest), x)
