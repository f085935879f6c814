"""Separates rounding from error: PyTorch rounds as C++ did wherever its value is on a rounding edge.

A ternary model rounds every activation to one of 255 levels, one *step* apart; how many activations share a
step depends on the type of the weight (see :mod:`bitexport.reference.grids`). The *edge* between two levels
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

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from bitexport.reference.grids import GRIDS, Grid, Levels, levels, on_grid
from bitexport.reference.ternary_layers import TernaryExperts, TernaryLinear, quantized_weight

#: How far from the edge, in steps of the 8-bit activation, a decision may be adopted. Float error stays
#: below 1e-3 of a step; a mistake in a weight, a scale or a norm moves values by whole steps. The step is the
#: largest of the token's groups: float error is relative to a token's large values, and can be several steps
#: of a group that has only small ones.
TOLERANCE = 0.01

#: The same for a value that ggml has rounded to float16 twice, before and after GELU, in steps of the token's
#: largest value.
GELU_TOLERANCE = TOLERANCE + 127 * 2.0**-10

#: The largest relative error of a weight: of the few float32 roundings by which it is computed.
_FLOAT_ERROR = 2.0**-21

#: Gives a weight by its GGUF name, float32 ``[out, in]``; None if it is not known.
Unpacked = Callable[[str], torch.Tensor | None]

#: GGUF types that store a scale as float16, by which the reference's weights are rounded as well.
HALF_SCALES = frozenset({"f16", "q2_0", "tq1_0", "tq2_0"})


class RecordedActivations(Protocol):
    """What C++ multiplied: :class:`bitexport.runtime.observe.Activations`."""

    @property
    def q(self) -> npt.NDArray[np.int8]:
        """int8 ``[tokens, in]``."""
        ...

    @property
    def scales(self) -> npt.NDArray[np.float32]:
        """float32 ``[tokens, in / group]``: a value is ``q / scale``; infinite for a group of zeros."""
        ...


@dataclass(frozen=True, slots=True)
class Stored:
    """How a file stores the ternary weights.

    Attributes:
        types: the GGUF type of each weight, such as ``"i2_s"``, by name.
        unpacked: gives a weight as our packings read it. Where float error decides to which float16 a weight
            is rounded, its values are used.
        input_orders: of weights whose columns the file has in another order, and so C++'s activations:
            ``file[:, i] = checkpoint[:, order[i]]``.
        after_gelu: the weights that multiply what ggml's GELU returns, see :data:`GELU_TOLERANCE`.
    """

    types: Mapping[str, str]
    unpacked: Unpacked | None = None
    input_orders: Mapping[str, npt.NDArray[np.intp]] = field(default_factory=dict)
    after_gelu: frozenset[str] = frozenset()


@dataclass
class Decisions:
    """Counts of the rounding decisions of one run.

    Attributes:
        compared: activations quantized on both sides.
        adopted: activations on an edge that C++ rounded the other way.
        farthest: the largest distance from the edge among them, in steps.
        unexplained: activations that differ without being on an edge.
        first_unexplained: GGUF name of the first weight that received an unexplained one.
        unrecorded: GGUF names of the weights whose levels were not recorded, because ggml's own kernels
            computed the product: PyTorch rounds by the same rule, but edges are not aligned.
        grids: how many ternary weights multiply an input on each grid.
    """

    compared: int = 0
    adopted: int = 0
    farthest: float = 0.0
    unexplained: int = 0
    first_unexplained: str | None = None
    unrecorded: set[str] = field(default_factory=set)
    grids: dict[Grid, int] = field(default_factory=dict)

    @staticmethod
    def of_all(runs: Sequence[Decisions]) -> Decisions:
        """The decisions of several runs of the same layers; at least one."""
        return Decisions(
            compared=sum(run.compared for run in runs),
            adopted=sum(run.adopted for run in runs),
            farthest=max(run.farthest for run in runs),
            unexplained=sum(run.unexplained for run in runs),
            first_unexplained=next((run.first_unexplained for run in runs if run.first_unexplained), None),
            unrecorded=set().union(*(run.unrecorded for run in runs)),
            grids=runs[0].grids,
        )


@contextmanager
def aligned_rounding(
    layers: Mapping[str, nn.Module],
    recorded: Mapping[str, RecordedActivations],
    stored: Stored,
    tolerance: float = TOLERANCE,
) -> Iterator[Decisions]:
    """Within the block, the ternary layers compute as C++ does, and on an edge round as it did.

    Run the model once in the block, on one sequence: the tokens that were recorded. Every layer rounds its
    input on the grid of its weight's type in the file, and its weights to float16 if that type's scales are.

    Args:
        layers: the model's ternary layers by the GGUF name of their weight.
        recorded: what C++ multiplied, by weight; by ``weight#expert`` for mixtures of experts.
        stored: how the file stores these weights.
        tolerance: largest distance from the edge, in steps.

    Raises:
        KeyError: a layer has no type, or one without a grid.
        ValueError: a layer was recorded with a different number of tokens or columns.
    """
    decisions = Decisions()
    restore: list[Callable[[], None]] = []
    try:
        for name, layer in layers.items():
            grid = GRIDS[stored.types[name]]
            decisions.grids[grid] = decisions.grids.get(grid, 0) + 1
            halved = stored.types[name] in HALF_SCALES
            allowed = GELU_TOLERANCE if name in stored.after_gelu else tolerance
            rounding = _Rounding(grid, recorded, allowed, decisions, stored.input_orders.get(name))
            if isinstance(layer, TernaryExperts):
                restore.append(_align_experts(name, layer, rounding, halved))
            elif grid is Grid.TOKEN and not isinstance(layer, TernaryLinear):
                # transformers' own layer rounds on this grid
                handle = layer.register_forward_pre_hook(_hook(name, rounding))
                restore.append(handle.remove)
            else:
                layer.forward = _forward(name, layer, rounding, halved, stored.unpacked)
                restore.append(lambda layer=layer: delattr(layer, "forward"))  # type: ignore[misc]
        yield decisions
    finally:
        for undo in reversed(restore):
            undo()


@dataclass(frozen=True)
class _Rounding:
    """How the inputs of one weight are rounded."""

    grid: Grid
    recorded: Mapping[str, RecordedActivations]
    tolerance: float
    decisions: Decisions
    order: npt.NDArray[np.intp] | None = None

    def rounded(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """``x`` ``[rows, in]`` on the grid, on an edge as recorded under ``name``."""
        if self.order is None:
            return self._rounded(name, x)
        return self._rounded(name, x[:, self.order])[:, np.argsort(self.order)]

    def _rounded(self, name: str, x: torch.Tensor) -> torch.Tensor:
        if not self.grid.has_levels:
            return on_grid(x, self.grid)
        own = levels(x, self.grid)
        if name not in self.recorded or self.recorded[name].q.shape != x.shape:
            weight, is_expert, _ = name.partition("#")
            if is_expert and any(key.startswith(f"{weight}#") for key in self.recorded):
                self._explain_nothing(name, x)  # the two sides chose different experts
            else:
                self._check_shape(name, x)
                self.decisions.unrecorded.add(weight)
            return own.values()
        step, _, chosen = self._choose(name, x, own)
        return (chosen * step).flatten(-2)

    def moved(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """``x`` ``[rows, in]``, with values on an edge replaced by ones that a layer rounds as recorded."""
        if name not in self.recorded:
            self.decisions.unrecorded.add(name)
            return x
        own = levels(x, self.grid)
        step, on_edge, chosen = self._choose(name, x, own)
        if not bool(on_edge.any()):
            return x
        largest = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-5)
        # Never beyond the largest value, which sets the scale.
        return torch.where(on_edge.flatten(-2), (chosen * step).flatten(-2).clamp(-largest, largest), x)

    def _choose(
        self, name: str, x: torch.Tensor, own: Levels
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The steps, which levels are adopted, and the levels, ``[rows, groups, ...]``; update the counts."""
        self._check_shape(name, x)
        found = self.recorded[name]
        cpp = torch.from_numpy(found.q).to(x.dtype).reshape(own.exact.shape)
        scales = torch.from_numpy(found.scales).reshape(own.step.shape)
        cpp_step = torch.where(torch.isinf(scales) | (scales == 0), 0, 1 / scales)
        # where two values of a group have almost the same magnitude, either may decide the sign of a step
        flipped = (cpp_step * own.step) < 0
        cpp, cpp_step = torch.where(flipped, -cpp, cpp), torch.where(flipped, -cpp_step, cpp_step)

        # a group's step as a fraction of the token's largest
        fraction = own.exact_step.abs() / own.exact_step.abs().amax(dim=-2, keepdim=True)
        error = self.tolerance * own.exact_step.abs().amax(dim=-2, keepdim=True)
        same_step = self._same_step(own, cpp_step, error / 127)
        differs = (own.rounded != cpp) | ~same_step
        distance = ((own.exact - cpp).abs() - 0.5) * fraction
        on_edge = differs & same_step & (distance <= self.tolerance)

        counts = self.decisions
        counts.compared += x.numel()
        if unexplained := int((differs & ~on_edge).sum()):
            counts.first_unexplained = counts.first_unexplained or name
            counts.unexplained += unexplained
        if bool(on_edge.any()):
            counts.adopted += int(on_edge.sum())
            counts.farthest = max(counts.farthest, float(distance[on_edge].max()))
        # a step differs by float error, or by one float16 rounding
        step = own.step if self.grid is Grid.TOKEN else torch.where(same_step, cpp_step, own.step)
        return step, on_edge, torch.where(on_edge, cpp, own.rounded)

    def _same_step(self, own: Levels, cpp: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
        """Whether each of C++'s steps is within ``error`` of the reference's, ``[rows, groups, 1]``."""
        if self.grid is Grid.TOKEN:
            return torch.ones_like(cpp, dtype=torch.bool)
        if self.grid is Grid.Q8_0:  # whose steps are rounded to float16
            stored = cpp.half().float()
            cpp = torch.where((stored - cpp).abs() <= cpp.abs() * 2**-20, stored, cpp)  # was inverted twice
            low, high = (own.exact_step - error).half().float(), (own.exact_step + error).half().float()
            return (low <= cpp) & (cpp <= high)
        return (own.step - cpp).abs() <= error

    def _check_shape(self, name: str, x: torch.Tensor) -> None:
        if name in self.recorded and (shape := self.recorded[name].q.shape) != x.shape:
            raise ValueError(
                f"{name}: {tuple(shape)} activations were recorded, the reference has {tuple(x.shape)}"
            )

    def _explain_nothing(self, name: str, x: torch.Tensor) -> None:
        self.decisions.compared += x.numel()
        self.decisions.unexplained += x.numel()
        self.decisions.first_unexplained = self.decisions.first_unexplained or name


def _hook(name: str, rounding: _Rounding) -> Callable[..., tuple[torch.Tensor]]:
    def align(_module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        (x,) = inputs  # (1, T, in)
        return (rounding.moved(name, x[0]).unsqueeze(0),)

    return align


def _forward(
    name: str, layer: Any, rounding: _Rounding, halved: bool, unpacked: Unpacked | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:  # (1, T, in), or (T, in) inside a mixture of experts
        found = quantized_weight(layer)
        weight = _halved(name, found.weight, unpacked) if halved else found.weight
        rows = rounding.rounded(name, x.reshape(-1, x.shape[-1]))
        return functional.linear(rows, weight, found.bias).reshape(*x.shape[:-1], -1)

    return forward


def _halved(name: str, weight: torch.Tensor, unpacked: Unpacked | None) -> torch.Tensor:
    """``weight`` rounded to float16, as the file's scales are."""
    rounded = weight.half()
    sure = (weight * (1 + _FLOAT_ERROR)).half() == (weight * (1 - _FLOAT_ERROR)).half()
    if unpacked is not None and not bool(sure.all()):
        exact = unpacked(name)
        if exact is not None and torch.allclose(exact, weight, rtol=_FLOAT_ERROR, atol=0):
            rounded = exact.half()
    return rounded.float()


def _align_experts(
    name: str, experts: TernaryExperts, rounding: _Rounding, halved: bool
) -> Callable[[], None]:
    """Let the projection whose weight is ``name`` round as recorded; returns how to undo that."""
    before = experts.product
    (aligned,) = (projection for projection, target in experts.names.items() if target == name)

    def product(projection: str, expert: int, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if projection != aligned:
            return before(projection, expert, x, weight)
        weight = weight.half().float() if halved else weight
        return functional.linear(rounding.rounded(f"{name}#{expert}", x), weight)

    def undo() -> None:
        experts.product = before

    experts.product = product
    return undo
