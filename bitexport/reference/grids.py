"""The activation grids: how a product rounds its input before it multiplies, as training and as ggml do it.

A grid divides the values of a token into groups and gives each group its own *step*: a rounded value is an
integer level times the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

import torch


class Grid(Enum):
    """One way of rounding the input of a matrix product; the value is its name in reports."""

    TOKEN = "8 bits per token"
    """One step for a token, its largest magnitude / 127: BitNet's training, and I2_S."""
    Q8_0 = "8 bits per 32 columns"
    """ggml's Q8_0: the step, largest magnitude / 127, is stored as float16."""
    Q8_K = "8 bits per 256 columns"
    """ggml's Q8_K: the value of largest magnitude becomes level -127, so that a step may be negative."""
    HALF = "float16"
    """Every value is rounded to float16."""
    FLOAT = "float32"
    """Nothing is rounded."""

    @property
    def group(self) -> int | None:
        """How many neighbouring columns have the same step; None if all of them, or if there is no step."""
        return {Grid.Q8_0: 32, Grid.Q8_K: 256}.get(self)

    @property
    def has_levels(self) -> bool:
        """Whether values are rounded to integer levels."""
        return self not in (Grid.HALF, Grid.FLOAT)


#: The grid on which ggml, or our kernels, round the input of a matrix of each GGUF type.
#: Source: ``vec_dot_type`` in ggml-cpu.c; Q8_1 has the levels of Q8_0.
GRIDS: Mapping[str, Grid] = MappingProxyType(
    {
        "i2_s": Grid.TOKEN,
        "f16": Grid.HALF,
        "f32": Grid.FLOAT,
        **dict.fromkeys(("q2_0", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"), Grid.Q8_0),
        **dict.fromkeys(("tq1_0", "tq2_0", "q6_k", "q5_k", "q4_k", "q3_k", "iq4_xs"), Grid.Q8_K),
    }
)


@dataclass(frozen=True, slots=True)
class Levels:
    """Values on a grid, before and after rounding.

    Attributes:
        exact: float32 ``[..., groups, group]``: the values divided by their group's step.
        rounded: the same as integers: the levels.
        step: float32 ``[..., groups, 1]``; 0 for a group that is all zeros.
        exact_step: the step before it is stored, which differs from ``step`` if that is float16.
    """

    exact: torch.Tensor
    rounded: torch.Tensor
    step: torch.Tensor
    exact_step: torch.Tensor

    def values(self) -> torch.Tensor:
        """The rounded values, float32 ``[..., columns]``."""
        return (self.rounded * self.step).flatten(-2)


def levels(x: torch.Tensor, grid: Grid) -> Levels:
    """Divide float32 ``x`` ``[..., columns]`` by the steps of ``grid``, which must have levels, and round.

    Sources: ActQuant in transformers' integrations/bitnet.py; quantize_row_q8_0 and quantize_row_q8_K in
    ggml's quants.c.
    """
    groups = x.reshape(*x.shape[:-1], -1, grid.group or x.shape[-1])
    if grid is Grid.Q8_K:
        extreme = groups.gather(-1, groups.abs().argmax(dim=-1, keepdim=True))
        per_step = torch.where(extreme != 0, _divide(-127, extreme), 0)
        exact = groups * per_step
        step = torch.where(per_step != 0, _divide(1, per_step), 0)
        return Levels(exact, exact.round().clamp(max=127), step, step)
    largest = groups.abs().amax(dim=-1, keepdim=True)
    if grid is Grid.TOKEN:
        largest = largest.clamp(min=1e-5)  # as transformers computes it, with PyTorch's division
        exact = groups * (127 / largest)
        step = 1 / (127 / largest)
        return Levels(exact, exact.round().clamp(-128, 127), step, step)
    exact = groups * torch.where(largest > 0, _divide(127, largest), 0)
    return Levels(exact, exact.round(), (largest / 127).half().float(), largest / 127)


def _divide(number: float, by: torch.Tensor) -> torch.Tensor:
    """A division rounded once, as in C; PyTorch's ``number / by`` multiplies by the reciprocal."""
    return torch.full_like(by, number) / by


def on_grid(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Float32 ``x`` ``[..., columns]`` rounded as ``grid`` rounds it."""
    if grid is Grid.FLOAT:
        return x
    if grid is Grid.HALF:
        return x.half().float()
    return levels(x, grid).values()
