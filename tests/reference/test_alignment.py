"""Rounding decisions: adopted on an edge, unexplained anywhere else, on every grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from bitexport.reference.alignment import Decisions, Stored, aligned_rounding
from bitexport.reference.grids import Grid, levels
from bitexport.reference.ternary_layers import TernaryLinear

TYPES = {Grid.TOKEN: "i2_s", Grid.Q8_0: "q2_0", Grid.Q8_K: "tq2_0"}
NAME = "blk.0.attn_q.weight"


@dataclass
class Recording:
    q: np.ndarray
    scales: np.ndarray


def recording(x: torch.Tensor, grid: Grid) -> Recording:
    """What C++ would report if it computed exactly ``x``, float32 ``[tokens, in]``."""
    found = levels(x, grid)
    scales = np.where(found.step[..., 0] != 0, 1 / found.step[..., 0], np.inf).astype(np.float32)
    return Recording(found.rounded.flatten(-2).numpy().astype(np.int8), scales)


def layer() -> TernaryLinear:
    trits = torch.randint(-1, 2, (16, 256), generator=torch.Generator().manual_seed(1)).float()
    return TernaryLinear(trits * 0.25, torch.arange(16.0), Grid.TOKEN)


def inputs() -> torch.Tensor:
    x = torch.randn(6, 256, generator=torch.Generator().manual_seed(2))
    x[:, 64:128] *= 1e-3
    x[1] = 0
    return x


def run(x: torch.Tensor, cpp: Recording, grid: Grid) -> tuple[torch.Tensor, Decisions]:
    module = layer()
    with aligned_rounding({NAME: module}, {NAME: cpp}, Stored({NAME: TYPES[grid]})) as decisions:
        output = module(x[None])[0]
    assert "forward" not in vars(module)
    return output, decisions


@pytest.mark.parametrize("grid", TYPES)
def test_the_same_input(grid: Grid) -> None:
    x = inputs()
    output, decisions = run(x, recording(x, grid), grid)
    assert (decisions.compared, decisions.adopted, decisions.unexplained) == (x.numel(), 0, 0)
    assert decisions.grids == {grid: 1}
    module = layer()
    expected = levels(x, grid).values() @ module.weight.T + module.bias
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("grid", TYPES)
def test_an_edge_is_adopted(grid: Grid) -> None:
    """Values moved across their edge by float error: the output is that of C++."""
    x = inputs()
    found = levels(x, grid)
    at = (2, 0, 5)
    edge = (found.rounded[at] + 0.5) * found.exact_step[2, 0, 0]
    x[2, 5], other = edge * (1 + 1e-6), x.clone()
    other[2, 5] = edge * (1 - 1e-6)
    output, decisions = run(x, recording(other, grid), grid)
    assert (decisions.adopted, decisions.unexplained) == (1, 0)
    assert 0 < decisions.farthest < 1e-3
    module = layer()
    torch.testing.assert_close(output, levels(other, grid).values() @ module.weight.T + module.bias)


@pytest.mark.parametrize("grid", TYPES)
def test_a_mistake_is_not(grid: Grid) -> None:
    x = inputs()
    cpp = recording(x, grid)
    cpp.q[3, 200] += 1
    output, decisions = run(x, cpp, grid)
    assert (decisions.adopted, decisions.unexplained, decisions.first_unexplained) == (0, 1, NAME)
    torch.testing.assert_close(output, run(x, recording(x, grid), grid)[0])


@pytest.mark.parametrize("grid", [Grid.Q8_0, Grid.Q8_K])
def test_a_step_of_another_size(grid: Grid) -> None:
    x = inputs()
    cpp = recording(x, grid)
    cpp.scales[3, 0] *= 1.002
    assert run(x, cpp, grid)[1].unexplained == grid.group


def test_a_float16_step_on_an_edge() -> None:
    """The largest value decides a step, which C++ may store as the neighbouring float16."""
    x = inputs()
    step = np.float16(0.01)
    between = (float(step) + float(np.nextafter(step, np.float16(1)))) / 2
    x[2, :32] = x[2, :32].clamp(-1, 1)
    x[2, 7], other = 127 * between * (1 + 1e-6), x.clone()
    other[2, 7] = 127 * between * (1 - 1e-6)
    assert levels(x, Grid.Q8_0).step[2, 0] != levels(other, Grid.Q8_0).step[2, 0]
    output, decisions = run(x, recording(other, Grid.Q8_0), Grid.Q8_0)
    assert decisions.unexplained == 0
    module = layer()
    torch.testing.assert_close(
        output[2], (levels(other, Grid.Q8_0).values() @ module.weight.T + module.bias)[2], rtol=1e-6, atol=0
    )


def test_either_of_two_largest_values_decides_the_sign() -> None:
    x = inputs()
    x[2, 7], x[2, 9] = 8.0, -8.0 * (1 + 1e-7)
    other = x.clone()
    other[2, 7], other[2, 9] = 8.0 * (1 + 2e-7), -8.0
    assert levels(x, Grid.Q8_K).step[2, 0] * levels(other, Grid.Q8_K).step[2, 0] < 0
    assert run(x, recording(other, Grid.Q8_K), Grid.Q8_K)[1].unexplained == 0


def test_float_error_in_a_group_of_small_values() -> None:
    """1e-7 of the token's largest value is several steps of a group that is far smaller."""
    x = inputs()
    x[:, 64:128] *= 1e-5
    other = x.clone()
    other[:, 64:128] += 2e-7 * torch.randn(6, 64, generator=torch.Generator().manual_seed(3))
    decisions = run(x, recording(other, Grid.Q8_0), Grid.Q8_0)[1]
    assert decisions.unexplained <= 64  # the token that is all zeros has no large value
    assert decisions.adopted > 0


def test_what_was_not_recorded_is_rounded_by_the_same_rule() -> None:
    x, module = inputs(), layer()
    with aligned_rounding({NAME: module}, {}, Stored({NAME: "tq2_0"})) as decisions:
        output = module(x[None])[0]
    assert decisions.unrecorded == {NAME}
    torch.testing.assert_close(output, levels(x, Grid.Q8_K).values() @ module.weight.T + module.bias)


def test_another_number_of_tokens() -> None:
    x = inputs()
    with pytest.raises(
        ValueError, match=r"\(5, 256\) activations were recorded, the reference has \(6, 256\)"
    ):
        run(x, recording(x[:5], Grid.Q8_0), Grid.Q8_0)


def test_a_weight_on_the_edge_of_a_float16() -> None:
    """1 / (1 / a) and a may be rounded to different float16 numbers; the packings' a is the file's."""
    low = np.float16(0.01)
    edge = np.float32((float(low) + float(np.nextafter(low, np.float16(1)))) / 2)
    above, below = np.nextafter(edge, np.float32(1)), np.nextafter(edge, np.float32(0))
    module = TernaryLinear(torch.full((1, 256), float(above)), None, Grid.TOKEN)
    x = torch.ones(1, 256)
    for exact, expected in ((float(below), float(low)), (1.0, float(np.float16(above)))):
        weight = torch.full((1, 256), exact)
        stored = Stored({NAME: "f16"}, lambda _name, weight=weight: weight)
        with aligned_rounding({NAME: module}, {}, stored):
            assert float(module(x)[0, 0]) == pytest.approx(256 * expected, rel=1e-6)


def test_columns_in_another_order() -> None:
    """The file's columns, C++'s activations and their groups are in an order of their own."""
    x, order, module = inputs(), np.random.default_rng(0).permutation(256), layer()
    cpp = recording(x[:, order], Grid.Q8_0)
    stored = Stored({NAME: "q2_0"}, input_orders={NAME: order})
    with aligned_rounding({NAME: module}, {NAME: cpp}, stored) as decisions:
        output = module(x[None])[0]
    assert decisions.unexplained == 0
    expected = levels(x[:, order], Grid.Q8_0).values() @ module.weight[:, order].T + module.bias
    torch.testing.assert_close(output, expected)
