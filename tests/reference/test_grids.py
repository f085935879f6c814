"""The activation grids round as ggml's own functions do, bit for bit."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from transformers.integrations.bitnet import ActQuant

from bitexport.reference.grids import GRIDS, Grid, levels, on_grid
from bitexport.reference.model import eager
from bitexport.system.native_files import library_file

#: ggml's function, the values of a block, and the block's layout.
Q8_0 = ("quantize_row_q8_0", 32, np.dtype([("d", "<f2"), ("q", "i1", 32)]))
Q8_K = ("quantize_row_q8_K", 256, np.dtype([("d", "<f4"), ("q", "i1", 256), ("sums", "<i2", 16)]))


def ggml_blocks(x: np.ndarray, function: str, block: int, layout: np.dtype) -> np.ndarray:
    """The blocks that ggml makes of float32 ``[rows, columns]``."""
    ctypes.CDLL(str(library_file("ggml-base")), ctypes.RTLD_GLOBAL)
    quantize = getattr(ctypes.CDLL(str(library_file("ggml-cpu"))), function)
    quantize.restype, quantize.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    source = np.ascontiguousarray(x, dtype=np.float32)
    made = np.zeros((len(x), x.shape[1] // block), layout)
    quantize(source.ctypes.data, made.ctypes.data, source.size)
    return made


def hard_rows() -> np.ndarray:
    """Rows with magnitudes from tiny to huge, ties, zeros, and values exactly between two levels."""
    random = np.random.default_rng(0)
    x = random.normal(size=(40, 512)).astype(np.float32)
    x *= np.float32(10) ** random.uniform(-4, 4, (40, 16)).repeat(32, axis=1).astype(np.float32)
    x[0] = 0
    x[1, :256] = 0
    x[2] = np.tile([1.0, -1.0], 256)
    x[3] = (random.integers(-127, 127, 512) + 0.5) * 2.0**-5
    x[3, ::32] = 127 * 2.0**-5
    return x


@pytest.mark.parametrize(("grid", "ggml"), [(Grid.Q8_0, Q8_0), (Grid.Q8_K, Q8_K)])
def test_ggml_rounds_alike(grid: Grid, ggml: tuple[str, int, np.dtype]) -> None:
    x = hard_rows()
    expected = ggml_blocks(x, *ggml)
    found = levels(torch.from_numpy(x), grid)
    np.testing.assert_array_equal(found.rounded.numpy(), expected["q"])
    np.testing.assert_array_equal(found.step[..., 0].numpy(), expected["d"].astype(np.float32))
    values = expected["q"] * expected["d"].astype(np.float32)[..., None]
    np.testing.assert_array_equal(on_grid(torch.from_numpy(x), grid).numpy(), values.reshape(x.shape))


def test_training_rounds_alike() -> None:
    x = torch.from_numpy(hard_rows())
    with eager():
        expected = ActQuant.apply(x)
    torch.testing.assert_close(on_grid(x, Grid.TOKEN), expected, rtol=1e-6, atol=0)
    scale = 127 / x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-5)
    assert torch.equal(levels(x, Grid.TOKEN).rounded[:, 0], (x * scale).round())


def test_halves_and_floats() -> None:
    x = torch.tensor([[1.0, 1 + 2**-12]])
    assert on_grid(x, Grid.HALF).tolist() == [[1, 1]]
    assert torch.equal(on_grid(x, Grid.FLOAT), x)


def test_a_grid_for_every_type_that_convert_writes() -> None:
    from bitexport.gguf.types import TERNARY_KINDS

    assert {kind.name: GRIDS[kind.name] for kind in TERNARY_KINDS} == {
        "i2_s": Grid.TOKEN,
        "tq2_0": Grid.Q8_K,
        "tq1_0": Grid.Q8_K,
        "q2_0": Grid.Q8_0,
        "f16": Grid.HALF,
    }
