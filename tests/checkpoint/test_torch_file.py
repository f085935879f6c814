"""Files that ``torch.save`` wrote: read without PyTorch, and nothing in them is executed."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bitexport.checkpoint import open_checkpoint
from bitexport.checkpoint.torch_file import read_torch_file
from bitexport.convert import convert
from bitexport.errors import CheckpointError


def folder_of(folder: Path, content: Any) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(content, folder / "pytorch_model.bin")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_values_of_every_float_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    whole = torch.randn(6, 5).to(dtype)
    tensors = {
        "whole": whole,
        "rows": whole[2:4],  # part of the same storage, as in a fused projection that was split
        "parameter": torch.nn.Parameter(torch.randn(3).to(dtype)),
        "scalar": torch.tensor(1.5).to(dtype),
        "empty": torch.empty(0, 4).to(dtype),
        "bytes": torch.arange(7, dtype=torch.uint8),
    }
    checkpoint = open_checkpoint(folder_of(tmp_path, tensors))
    assert list(checkpoint.tensors) == list(tensors)
    for name, tensor in tensors.items():
        expected = tensor.detach()
        expected = expected if expected.dtype == torch.uint8 else expected.float()
        np.testing.assert_array_equal(checkpoint.read(name), expected.numpy())


def test_the_state_dict_of_a_module(tmp_path: Path) -> None:
    """An OrderedDict with the attribute ``_metadata``."""
    module = torch.nn.Linear(3, 4)
    checkpoint = open_checkpoint(folder_of(tmp_path, module.state_dict()))
    np.testing.assert_array_equal(checkpoint.read("weight"), module.weight.detach().numpy())


def as_bin(checkpoint: Path, folder: Path, shards: int) -> Path:
    """A copy of a checkpoint with its weights as transformers 4 saved them without safetensors."""
    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return folder
    names = sorted(tensors)
    weight_map = {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        chosen = names[number::shards]
        torch.save({name: tensors[name] for name in chosen}, folder / file)
        weight_map.update(dict.fromkeys(chosen, file))
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("packing", ["master", "packed-multiply"])
def test_the_same_file_as_from_safetensors(
    tmp_path: Path,
    checkpoint_of: Callable[..., Path],
    gguf_of: Callable[..., Path],
    packing: str,
    shards: int,
) -> None:
    # the folder's name is in the file
    folder = as_bin(checkpoint_of(packing), tmp_path / packing, shards)
    convert(folder, tmp_path / "x.gguf", embed_type="f16")
    assert (tmp_path / "x.gguf").read_bytes() == gguf_of(packing).read_bytes()


def test_pytorch_loads_it_for_parity(tmp_path: Path, checkpoint_of: Callable[..., Path]) -> None:
    from bitexport.reference import load_reference

    reference = load_reference(as_bin(checkpoint_of(), tmp_path / "bin", 2))
    expected = load_reference(checkpoint_of())
    np.testing.assert_array_equal(reference.logits([0, 5, 7]), expected.logits([0, 5, 7]))


class Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def test_code_is_not_run(tmp_path: Path) -> None:
    target = tmp_path / "executed"
    folder_of(tmp_path, {"w": torch.ones(2), "x": Attack(target)})
    with pytest.raises(CheckpointError, match=r"the pickle uses \w+(\.\w+)*; expected a state dict with"):
        open_checkpoint(tmp_path)
    assert not target.exists()


@pytest.mark.parametrize(
    "raw",
    [
        b"cbuiltins\neval\n(S'1/0'\ntR.",
        b"cos\nsystem\n(S'exit 1'\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93.",
        b"ctorch._utils\n_rebuild_tensor_v2\n.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(I1\nI0\n(t(ttR.",
        b"ccollections\nOrderedDict\n(]tR.",
        b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI-5\ntQ.",
        b"\x80\x02}q\x00.extra",
        b"\x80\x02",
        b"I1\n.",
        b"(dI1\nI2\ns.",
        b"",
    ],
)
def test_other_pickles(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", raw)
    if raw.endswith(b"extra"):  # an empty dict; what follows STOP is not read
        assert read_torch_file(path) == {}
        return
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: .*save it again as safetensors"):
        read_torch_file(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"w": torch.ones(2)}}, "entry 'model' has type dict; expected tensors by name"),
        ({"step": 3}, "entry 'step' has type int; expected tensors by name"),
        ([torch.ones(2)], "the file has type list; expected tensors by name"),
        ({1: torch.ones(2)}, "tensor name 1 is not printable text"),
        ({"w": torch.ones(2, 3).to_sparse()}, "the pickle uses .*; expected a state dict with nothing but"),
    ],
)
def test_other_contents_and_the_advice(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder_of(tmp_path, content))


def test_a_view_and_the_advice(tmp_path: Path) -> None:
    view = torch.arange(6.0).reshape(2, 3).t()
    folder_of(tmp_path, {"w": view})
    with pytest.raises(
        CheckpointError, match=r"'w' of shape \[3, 2\] has strides \[1, 3\].*\.contiguous\(\)"
    ):
        open_checkpoint(tmp_path)
    save_file({"w": view.contiguous()}, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(open_checkpoint(tmp_path).read("w"), view.numpy())


def test_the_format_before_pytorch_1_6_and_the_advice(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    file = tmp_path / "pytorch_model.bin"
    torch.save({"w": torch.ones(2)}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(
        CheckpointError, match=r"not a zip archive.*torch\.load\(weights_only=True\).*save_file"
    ):
        open_checkpoint(tmp_path)
    state_dict = torch.load(file, weights_only=True)
    save_file(state_dict, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(open_checkpoint(tmp_path).read("w"), np.ones(2))


def test_a_compressed_archive(tmp_path: Path) -> None:
    folder_of(tmp_path, {"w": torch.zeros(1000)})
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in members.items():
            archive.writestr(name, raw)
    with pytest.raises(CheckpointError, match=r"is compressed; expected it as torch\.save writes it"):
        open_checkpoint(tmp_path)


def test_a_tensor_outside_its_storage(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    folder_of(tmp_path, {"w": torch.zeros(4)})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in members.items():
            archive.writestr(name, raw[:-4] if "/data/" in name else raw)
    with pytest.raises(CheckpointError, match="'w' takes bytes 0 to 16 of data of 12 bytes"):
        open_checkpoint(tmp_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "x.bin"
    torch.save({"a": torch.ones(3, 2), "b": torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))}, path)
    return path.read_bytes()


@given(data=st.data())
def test_damaged_files_are_named_errors(
    tmp_path_factory: pytest.TempPathFactory, saved: bytes, data: st.DataObject
) -> None:
    raw = bytearray(saved)
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    path.write_bytes(raw)
    try:
        found = read_torch_file(path)
    except CheckpointError:
        return
    assert all(info.offset + info.nbytes <= len(raw) for info in found.values())


def test_protocol_2_is_what_torch_writes(saved: bytes) -> None:
    """So that the hand-written pickles above are of the right kind."""
    assert saved.find(pickle.PROTO + b"\x02") > 0
