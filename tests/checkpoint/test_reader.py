"""Opening checkpoint folders: shards, the index, and values of every dtype."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from bitexport.checkpoint import open_checkpoint
from bitexport.errors import CheckpointError


def folder_of(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, str(folder / "model.safetensors"))
    (folder / "config.json").write_text('{"architectures": ["BitNetForCausalLM"]}')
    return folder


def sharded(folder: Path, shards: dict[str, dict[str, torch.Tensor]], **index: object) -> Path:
    weight_map = {}
    for file, tensors in shards.items():
        save_file(tensors, str(folder / file))
        weight_map.update(dict.fromkeys(tensors, file))
    content = {"metadata": {}, "weight_map": {**weight_map, **index}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    (folder / "config.json").write_text("{}")
    return folder


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_of_every_float_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.randn(7, 5).to(dtype)
    # a tensor of three bytes in front makes the next one unaligned
    folder_of(tmp_path, {"a": torch.zeros(3, dtype=torch.uint8), "b": values})
    read = open_checkpoint(tmp_path).read("b")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values.float().numpy())


@given(bits=st.integers(0, 0xFFFF))
def test_every_bfloat16(tmp_path_factory: pytest.TempPathFactory, bits: int) -> None:
    value = torch.tensor([bits], dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    folder = folder_of(tmp_path_factory.mktemp("bf16"), {"w": value})
    if not math.isfinite(value.item()):
        with pytest.raises(CheckpointError, match="'w' holds"):
            open_checkpoint(folder).read("w")
    else:
        assert open_checkpoint(folder).read("w").tobytes() == value.float().numpy().tobytes()


def test_bytes_stay_bytes(tmp_path: Path) -> None:
    values = torch.arange(12, dtype=torch.uint8).reshape(3, 4)
    read = open_checkpoint(folder_of(tmp_path, {"w": values})).read("w")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, values.numpy())


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_reading_rows_in_chunks(tmp_path: Path, rows: int) -> None:
    values = torch.randn(7, 1100)  # rows that straddle pages
    checkpoint = open_checkpoint(folder_of(tmp_path, {"w": values}))
    pieces = list(checkpoint.read_rows("w", rows))
    assert max(len(piece) for piece in pieces) == min(rows, 7)
    np.testing.assert_array_equal(np.concatenate(pieces), values.numpy())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(tmp_path: Path, bad: float) -> None:
    values = torch.zeros(3, 3)
    values[1, 2] = bad
    with pytest.raises(CheckpointError, match=r"'w' holds -?(nan|inf) \(element 5"):
        open_checkpoint(folder_of(tmp_path, {"w": values})).read("w")


def test_large_finite_values_pass(tmp_path: Path) -> None:
    values = torch.full((4, 4), torch.finfo(torch.float32).max)
    np.testing.assert_array_equal(
        open_checkpoint(folder_of(tmp_path, {"w": values})).read("w"), values.numpy()
    )


def test_other_dtypes_are_errors_when_read(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder_of(tmp_path, {"w": torch.zeros(2, dtype=torch.int16)}))
    assert checkpoint.info("w").dtype == "I16"
    with pytest.raises(CheckpointError, match="'w' has dtype I16"):
        checkpoint.read("w")


def test_same_bytes(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(3), "b": torch.ones(3), "c": torch.zeros(3), "d": torch.ones(1, 3)}
    checkpoint = open_checkpoint(folder_of(tmp_path, tensors))
    assert checkpoint.same_bytes("a", "b")
    assert not checkpoint.same_bytes("a", "c")
    assert not checkpoint.same_bytes("a", "d")


def test_shards(tmp_path: Path) -> None:
    sharded(tmp_path, {ONE: {"a": torch.ones(2)}, TWO: {"b": torch.zeros(3)}})
    checkpoint = open_checkpoint(tmp_path)
    assert {name: info.shard.name for name, info in checkpoint.tensors.items()} == {"a": ONE, "b": TWO}
    np.testing.assert_array_equal(checkpoint.read("b"), np.zeros(3))
    assert checkpoint.nbytes == 20


def test_a_missing_shard(tmp_path: Path) -> None:
    sharded(tmp_path, {ONE: {"a": torch.ones(2)}, TWO: {"b": torch.zeros(3)}})
    (tmp_path / TWO).unlink()
    with pytest.raises(CheckpointError, match=f"shard '{TWO}' is missing"):
        open_checkpoint(tmp_path)


def test_every_shard_is_checked_before_anything_is_read(tmp_path: Path) -> None:
    sharded(tmp_path, {ONE: {"a": torch.ones(2)}, TWO: {"b": torch.zeros(3)}})
    (tmp_path / TWO).write_bytes((tmp_path / TWO).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"{TWO}.*truncated"):
        open_checkpoint(tmp_path)


def test_a_tensor_that_only_the_index_has(tmp_path: Path) -> None:
    sharded(tmp_path, {ONE: {"a": torch.ones(2)}}, c=ONE)
    with pytest.raises(CheckpointError, match="'c' is not in its shard"):
        open_checkpoint(tmp_path)


def test_a_tensor_that_the_index_lacks_or_puts_elsewhere(tmp_path: Path) -> None:
    sharded(tmp_path, {ONE: {"a": torch.ones(2)}, TWO: {"b": torch.ones(2)}}, b=ONE)
    index = tmp_path / "model.safetensors.index.json"
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": ONE, "x": TWO}}))
    with pytest.raises(CheckpointError, match="'b', but the index does not list it"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "a\\b", "C:x", "a\x00b"],
)
def test_an_index_that_points_outside(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file({"a": torch.ones(2)}, str(tmp_path / "outside.safetensors"))
    sharded(folder, {ONE: {"a": torch.ones(2)}}, a=name)
    with pytest.raises(CheckpointError, match="outside the folder"):
        open_checkpoint(folder)


def test_an_index_with_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    sharded(tmp_path, {ONE: {"a": torch.ones(2)}}, a="é" * 300)
    with pytest.raises(CheckpointError, match="is missing"):
        open_checkpoint(tmp_path)


def test_a_link_that_points_outside(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    folder_of(folder, {"a": torch.ones(2)})
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(CheckpointError, match="is a link to"):
        open_checkpoint(folder)


def test_the_links_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    folder, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    folder_of(folder, {"a": torch.ones(2)})
    (folder / "model.safetensors").rename(blobs / "123")
    (folder / "model.safetensors").symlink_to(Path("../../blobs/123"))
    np.testing.assert_array_equal(open_checkpoint(folder).read("a"), np.ones(2))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "expected a JSON object"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "not valid JSON"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "found pytorch_model.bin",
        ),
    ],
)
def test_folders_that_are_not_checkpoints(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(folder_of(tmp_path, {"a": torch.ones(1)}))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        open_checkpoint(tmp_path / "file")


@pytest.mark.parametrize(
    "index", ['{"weight_map": {}}', "{}", '{"weight_map": {"a": 1}}', '{"weight_map": []}']
)
def test_an_index_without_a_map(tmp_path: Path, index: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"index.json"):
        open_checkpoint(tmp_path)
