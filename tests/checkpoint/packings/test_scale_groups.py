"""Float weights that are ternary with several scales are recognised bit for bit, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitexport.checkpoint.packings.scale_groups import equal_neighbours, find_scale_groups
from tests.support.scale_groups import grouped_floats


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_groups_of_columns_are_found(size: int) -> None:
    found = find_scale_groups(grouped_floats(16, 512, size))
    assert found is not None
    assert (found.group, found.share, found.misfit) == (size, 1.0, "")
    assert 0.0099 <= found.low < found.high <= 0.0501


@pytest.mark.parametrize("columns", [48, 100, 512])
def test_a_scale_per_row_or_block_of_rows_is_found(columns: int) -> None:
    rows = grouped_floats(16, columns, columns)
    for weights in (rows, np.repeat(rows[:4], 4, axis=0)):
        found = find_scale_groups(weights)
        assert found is not None
        assert (found.group, found.complete) == (columns, True)


def test_a_block_of_rows_that_is_larger_than_what_is_read_at_once() -> None:
    """As in TriLM's checkpoints: the first rows look like a tensor with one scale."""
    weights = np.sign(grouped_floats(1200, 512, 512)) * np.float32(0.5)
    weights[600:] *= np.float32(0.5)
    found = find_scale_groups(weights)
    assert found is not None
    assert (found.group, found.low, found.high) == (512, 0.25, 0.5)


def test_a_few_other_values_do_not_hide_the_groups() -> None:
    weights = grouped_floats(64, 512, 128)
    weights[5, 200] = 0.0001
    found = find_scale_groups(weights)
    assert found is not None
    assert found.group == 128
    assert 0.99 < found.share < 1
    assert found.misfit.startswith("row 5, columns 192 to 223 contain 0.0001 and 0.0")
    # a whole unit with another scale: no unit has two magnitudes, but one group has
    weights = grouped_floats(64, 512, 128)
    weights[7, 128:160] = 0.5
    found = find_scale_groups(weights)
    assert found is not None
    assert (found.group, found.complete) == (128, False)
    assert found.misfit.startswith("row 7, columns 128 to 255 contain 0.0")


def test_one_step_of_rounding_is_another_magnitude() -> None:
    weights = grouped_floats(16, 512, 128, dtype=torch.float16)
    row, column = np.argwhere(weights != 0)[40]
    weights[row, column] = np.nextafter(weights[row, column].astype(np.float16), np.float16(1))
    found = find_scale_groups(weights)
    assert found is not None
    assert (found.group, found.complete) == (128, False)


def test_rows_of_zeros_in_front_do_not_hide_the_groups() -> None:
    weights = grouped_floats(2048, 512, 64)
    weights[:1024] = 0
    found = find_scale_groups(weights)
    assert found is not None
    assert found.group == 64


@pytest.mark.parametrize("seed", range(3))
def test_trained_weights_have_no_groups(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 0.02, (64, 512)).astype(np.float32)
    for each in (weights, torch.from_numpy(weights).bfloat16().float().numpy(), np.round(weights, 2)):
        assert find_scale_groups(each) is None
        assert not equal_neighbours(each)
    weights[rng.random(weights.shape) < 0.99] = 0  # pruned to about one value per group
    assert find_scale_groups(weights) is None
    assert not equal_neighbours(weights)


def test_zeros_are_a_tensor_with_one_scale() -> None:
    found = find_scale_groups(np.zeros((4, 64), np.float32))
    assert found is not None
    assert (found.group, found.low, found.high) == (None, 0, 0)


@pytest.mark.parametrize(("size", "columns"), [(20, 480), (100, 400), (512, 512)])
def test_other_groups_are_noticed(size: int, columns: int) -> None:
    weights = grouped_floats(64, columns, size)
    if size == columns:  # a scale per column
        weights = np.ascontiguousarray(grouped_floats(columns, 64, 64).T)
    assert find_scale_groups(weights) is None
    assert equal_neighbours(weights)


@pytest.mark.parametrize("shape", [(8,), (4, 0)])
def test_tensors_of_an_odd_shape_have_no_groups(shape: tuple[int, ...]) -> None:
    assert find_scale_groups(np.ones(shape, np.float32)) is None
