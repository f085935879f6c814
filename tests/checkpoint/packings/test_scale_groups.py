"""Float weights that are ternary with several scales are never quantized again, and the advice is right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bitexport.checkpoint import open_checkpoint
from bitexport.checkpoint.packings.scale_groups import find_scale_groups
from bitexport.convert import convert
from bitexport.errors import UnsupportedError
from bitexport.gguf.reader import read_gguf
from bitexport.health.scan import scan_checkpoint
from tests.support.gguf_files import values
from tests.support.tiny_models import Shape

Checkpoints = Callable[..., Path]

SHAPE = Shape(hidden=256, ffn=512, heads=4, kv_heads=2)
TARGET = "model.layers.1.mlp.up_proj.weight"


def grouped(out: int, columns: int, size: int, seed: int = 0) -> np.ndarray:
    """Trits times a scale per group of ``size`` columns, in bfloat16's precision."""
    rng = np.random.default_rng(seed)
    trits = rng.integers(-1, 2, (out, columns)).astype(np.float32)
    scales = rng.uniform(0.01, 0.05, (out, columns // size)).astype(np.float32)
    exact = torch.from_numpy(trits * np.repeat(scales, size, axis=1))
    return exact.bfloat16().float().numpy()


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_groups_of_columns_are_found(size: int) -> None:
    found = find_scale_groups(grouped(16, 512, size))
    assert found is not None
    assert (found.columns, found.per_row, found.share) == (size, False, 1.0)
    assert 0.01 <= found.low < found.high <= 0.05


@pytest.mark.parametrize("columns", [48, 100, 512])
def test_a_scale_per_row_or_block_of_rows_is_found(columns: int) -> None:
    rows = grouped(16, columns, columns)
    found = find_scale_groups(rows)
    assert found is not None
    assert (found.columns, found.per_row) == (columns, True)
    blocks = np.repeat(rows[:4], 4, axis=0)
    found = find_scale_groups(blocks)
    assert found is not None
    assert found.per_row


def test_a_few_other_values_do_not_hide_the_groups() -> None:
    weights = grouped(64, 512, 128)
    weights[0, :3] = 0.123
    weights[5, 200] = 0.0001
    found = find_scale_groups(weights)
    assert found is not None
    assert found.columns == 128
    assert 0.98 < found.share < 1


def test_rows_of_zeros_in_front_do_not_hide_the_groups() -> None:
    weights = grouped(2048, 512, 64)
    weights[:1024] = 0
    found = find_scale_groups(weights)
    assert found is not None
    assert found.columns == 64


@pytest.mark.parametrize("seed", range(3))
def test_trained_weights_have_no_groups(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 0.02, (64, 512)).astype(np.float32)
    assert find_scale_groups(weights) is None
    assert find_scale_groups(torch.from_numpy(weights).bfloat16().float().numpy()) is None
    weights[rng.random(weights.shape) < 0.99] = 0  # pruned to about one value per group
    assert find_scale_groups(weights) is None
    assert find_scale_groups(np.zeros((4, 64), np.float32)) is None


def with_groups(source: Path, folder: Path, size: int, quantization: dict[str, Any] | None) -> Path:
    """A copy of a checkpoint of master weights, all its linear layers with a scale per group."""
    folder.mkdir()
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(source / "model.safetensors")
    for seed, (name, tensor) in enumerate(tensors.items()):
        if name.endswith("_proj.weight"):
            out, columns = tensor.shape
            tensors[name] = torch.from_numpy(grouped(out, columns, size or columns, seed)).to(tensor.dtype)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    if quantization is not None:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("size", [128, 0])
def test_convert_refuses_and_its_advice_keeps_the_values(
    size: int, tmp_path: Path, checkpoint_of: Checkpoints, empty_folder: Path
) -> None:
    online = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    source = with_groups(checkpoint_of("master", shape=SHAPE), tmp_path / "c", size, online)
    unit = f"group of {size} columns" if size else "row"
    advice = "remove quantization_config from config.json and convert with --float"
    with pytest.raises(UnsupportedError, match=f"already ternary with a scale per {unit}.*{advice}"):
        convert(source, empty_folder / "x.gguf", strict=True)

    # the advice, step by step
    config = json.loads((source / "config.json").read_text())
    del config["quantization_config"]
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=f"a scale per {unit}.*convert with --float"):
        convert(source, empty_folder / "x.gguf")
    convert(source, tmp_path / "x.gguf", all_float=True)
    expected = load_file(source / "model.safetensors")[TARGET].float().numpy()
    found = values(read_gguf(tmp_path / "x.gguf"), "blk.1.ffn_up.weight")
    np.testing.assert_allclose(found, expected, rtol=2**-11)


def test_one_scale_per_tensor_is_still_accepted(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    source = checkpoint_of("pre-dequantized", shape=SHAPE)
    assert convert(source, tmp_path / "x.gguf", dry_run=True).packing == "pre-dequantized"


@pytest.mark.parametrize("shape", [(8,), (4, 0)])
def test_tensors_of_an_odd_shape_have_no_groups(shape: tuple[int, ...]) -> None:
    assert find_scale_groups(np.ones(shape, np.float32)) is None


def test_health_reports_the_groups(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    online = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    source = with_groups(checkpoint_of("master", shape=SHAPE), tmp_path / "c", 64, online)
    findings = scan_checkpoint(open_checkpoint(source))
    (finding,) = [finding for finding in findings if finding.name == "unreadable"]
    assert "is already ternary with a scale per group of 64 columns" in finding.message
