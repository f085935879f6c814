"""Every tensor type that can be read as floats, some rows at a time and whole."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from bitexport.errors import GGUFError
from bitexport.gguf.dequantize import can_dequantize, dequantize, dequantize_rows, rows_per_chunk
from bitexport.gguf.packers import PACKERS
from bitexport.gguf.reader import read_gguf
from bitexport.gguf.types import TYPES
from bitexport.gguf.writer import TensorSpec, write_gguf
from bitexport.ternary import TernaryTensor

#: The types of ggml that hold something other than weights, or that the gguf package does not read.
UNREADABLE = {"q8_1", "q8_k", "i8", "i16", "i32", "i64", "f64", "q1_0"}


def write(path: Path, shape: tuple[int, ...], type_name: str, data: np.ndarray) -> Path:
    write_gguf(path, "llama", {}, [TensorSpec("x", shape, TYPES[type_name])], lambda _: [data])
    return path


def test_which_types_can_be_read() -> None:
    assert {name for name, kind in TYPES.items() if not can_dequantize(kind)} == UNREADABLE


@pytest.mark.parametrize("type_name", ["f32", "f16", "bf16", "q8_0", "q4_0"])
@pytest.mark.parametrize("shape", [(7, 64), (3, 2, 64), (64,)])
def test_floats_in_chunks_and_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, type_name: str, shape: tuple[int, ...]
) -> None:
    kind = gguf.GGMLQuantizationType[type_name.upper()]
    data = gguf.quants.quantize(np.random.default_rng(0).standard_normal(shape, np.float32), kind)
    expected = gguf.quants.dequantize(data, kind)
    file = read_gguf(write(tmp_path / "x.gguf", shape, type_name, data))
    (tensor,) = file.tensors
    rows = shape[0] if len(shape) > 1 else 1
    np.testing.assert_array_equal(dequantize(file, tensor), expected.reshape(rows, -1))
    monkeypatch.setattr("bitexport.gguf.dequantize.CHUNK_WEIGHTS", 128)
    chunks = list(dequantize_rows(file, tensor))
    assert [len(chunk) for chunk in chunks[:-1]] == [rows_per_chunk(shape)] * (len(chunks) - 1)
    np.testing.assert_array_equal(np.concatenate(chunks), expected.reshape(rows, -1))


@pytest.mark.parametrize("type_name", ["i2_s", "q2_0", "tq1_0", "tq2_0"])
@pytest.mark.parametrize("shape", [(4, 256), (2, 2, 256)])
def test_trits(tmp_path: Path, type_name: str, shape: tuple[int, ...]) -> None:
    trits = np.random.default_rng(0).integers(-1, 2, (4, 256), dtype=np.int8)
    packed = PACKERS[type_name].pack(TernaryTensor(trits, np.float32(0.5)))
    file = read_gguf(write(tmp_path / "x.gguf", shape, type_name, packed))
    values = dequantize(file, file.tensors[0])
    np.testing.assert_array_equal(values, trits.reshape(shape[0], -1) * np.float32(0.5))


def test_a_type_that_cannot_be_read(tmp_path: Path) -> None:
    file = read_gguf(write(tmp_path / "x.gguf", (2, 4), "i32", np.zeros((2, 4), np.int32)))
    with pytest.raises(GGUFError, match=r"x\.gguf: tensor 'x' is i32, which cannot be read back"):
        dequantize(file, file.tensors[0])


def test_a_tensor_without_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", (0, 4), "f32", np.zeros((0, 4), np.float32))
    with pytest.raises(GGUFError, match=r"tensor 'x' has shape \[0, 4\]; expected no dimension of 0"):
        read_gguf(path)
