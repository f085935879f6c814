"""``inspect``: GGUF files and checkpoint folders."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from bitexport.convert import convert
from bitexport.errors import CheckpointError, GGUFError
from bitexport.gguf.reader import read_gguf
from bitexport.inspect import inspect
from tests.support.cli import one_line

RunCli = Callable[..., CompletedProcess[str]]
Checkpoints = Callable[..., Path]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, checkpoint_of: Callable[..., Path]) -> Path:
    path = tmp_path_factory.mktemp("inspect") / "x.gguf"
    convert(checkpoint_of(), path)
    return path


def test_a_gguf_file(converted: Path) -> None:
    report = inspect(converted)
    assert (report.kind, report.architecture, report.file_type) == ("gguf", "bitnet-b1.58", "i2_s")
    assert report.types == {"i2_s": 14, "f32": 9, "q6_k": 1}
    by_name = {row.name: row for row in report.tensors}
    query = by_name["blk.0.attn_q.weight"]
    assert (query.type, query.shape, query.bytes) == ("i2_s", [256, 256], 256 * 256 // 4 + 32)
    assert 0.03 < (query.scale or 0) < 0.05
    assert by_name["output_norm.weight"].scale is None
    assert report.metadata["general.file_type"] == 40
    tokens = report.metadata["tokenizer.ggml.tokens"]
    assert (tokens["array_of"], tokens["length"], tokens["first"][0]) == ("string", 512, "<|begin_of_text|>")


def test_file_type_40_without_i2_s_tensors_is_upstreams(
    tmp_path: Path, checkpoint_of: Callable[..., Path]
) -> None:
    convert(checkpoint_of(), tmp_path / "x.gguf", type="f16", embed_type="f16")
    content = (tmp_path / "x.gguf").read_bytes()
    key = b"general.file_type" + struct.pack("<I", 4)
    assert key + struct.pack("<I", 1) in content
    (tmp_path / "x.gguf").write_bytes(
        content.replace(key + struct.pack("<I", 1), key + struct.pack("<I", 40))
    )
    assert inspect(tmp_path / "x.gguf").file_type != "i2_s"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_hidden_layers": 3}, "tensor 'model.layers.2.input_layernorm.weight' is missing"),
        ({"quantization_config": {"quant_method": "bitnet", "linear_class": "foo"}}, "linear_class 'foo'"),
        ({"architectures": ["GPT2LMHeadModel"]}, "unknown architecture"),
    ],
)
def test_a_checkpoint_that_cannot_be_converted_is_not_called_healthy(
    checkpoint_of: Checkpoints, tmp_path: Path, run_cli: RunCli, changes: dict[str, object], problem: str
) -> None:
    folder = shutil.copytree(checkpoint_of("packed-multiply"), tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    done = run_cli("inspect", folder, "--health")
    assert done.returncode == 0, done.stderr
    assert problem in done.stderr
    assert "healthy" not in done.stdout


@pytest.mark.parametrize("packing", ["master", "packed-multiply", "packed-divide"])
def test_a_checkpoint(checkpoint_of: Callable[..., Path], packing: str) -> None:
    report = inspect(checkpoint_of(packing))
    assert (report.kind, report.architecture, report.file_type) == (
        "checkpoint",
        "BitNetForCausalLM",
        packing,
    )
    assert report.problems == []
    assert report.types == ({"f32": 24} if packing == "master" else {"f32": 24, "u8": 14})
    assert report.metadata["hidden_size"] == 256


def test_a_checkpoint_that_cannot_be_converted_is_still_shown(
    tmp_path: Path, checkpoint_of: Callable[..., Path]
) -> None:
    import shutil

    shutil.copytree(checkpoint_of(), tmp_path / "c")
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    config.pop("quantization_config")
    (tmp_path / "c" / "config.json").write_text(json.dumps(config))
    report = inspect(tmp_path / "c")
    assert report.file_type == "unknown"
    (problem,) = report.problems
    assert "no quantization_config" in problem
    config.pop("architectures")
    (tmp_path / "c" / "config.json").write_text(json.dumps(config))
    report = inspect(tmp_path / "c")
    assert (report.architecture, len(report.tensors)) == ("unknown", 24)
    (problem,) = report.problems
    assert "no architectures" in problem
    config.update(architectures=["BitNetForCausalLM"], hidden_size="many")
    (tmp_path / "c" / "config.json").write_text(json.dumps(config))
    assert "hidden_size is 'many'" in inspect(tmp_path / "c").problems[0]


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="cannot be read"):
        inspect(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        inspect(tmp_path)


def test_the_command_line(
    converted: Path, checkpoint_of: Callable[..., Path], run_cli: Callable[..., CompletedProcess[str]]
) -> None:
    done = run_cli("inspect", converted, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["schema"] == 1
    assert {"architecture", "file_type", "tensors", "metadata"} <= document.keys()
    assert document["tensors"][0].keys() == {"name", "type", "shape", "bytes", "scale"}
    human = run_cli("inspect", checkpoint_of("packed-divide"))
    assert human.returncode == 0
    assert "BitNetForCausalLM, packed-divide" in human.stdout
    assert "38 tensors (24 f32, 14 u8)" in human.stdout


def test_type_36_with_a_bad_length(tmp_path: Path, checkpoint_of: Checkpoints, run_cli: RunCli) -> None:
    path = tmp_path / "x.gguf"
    convert(checkpoint_of(), path, embed_type="f16")
    content = path.read_bytes()
    # the key's tensor claims twice as many rows as it has bytes for
    name = b"blk.0.attn_k.weight"
    at = content.index(name) + len(name)
    assert struct.unpack_from("<IQQI", content, at) == (2, 256, 128, 36)
    path.write_bytes(content[: at + 12] + struct.pack("<Q", 256) + content[at + 20 :])
    line = one_line(run_cli("inspect", path), 1)
    assert re.search(r"'blk.0.attn_k.weight' of type 36.*room for 8224 bytes, expected 16416", line), line
    path.write_bytes(content[:-100])
    assert "ends at byte" in one_line(run_cli("inspect", path), 1)


@pytest.mark.parametrize("scale", [0.0, float("nan"), -1.0])
def test_type_36_with_an_invalid_scale(
    tmp_path: Path, checkpoint_of: Checkpoints, run_cli: RunCli, scale: float
) -> None:
    path = tmp_path / "x.gguf"
    convert(checkpoint_of(), path, embed_type="f16")
    (tensor,) = [t for t in read_gguf(path).tensors if t.name == "blk.0.attn_k.weight"]
    content = bytearray(path.read_bytes())
    struct.pack_into("<f", content, tensor.offset + tensor.nbytes - 32, scale)
    path.write_bytes(bytes(content))
    line = one_line(run_cli("inspect", path), 1)
    assert f"'blk.0.attn_k.weight': an I2_S tensor has scale {scale}; expected" in line


def test_not_a_gguf_file(tmp_path: Path, run_cli: RunCli) -> None:
    assert "cannot be read" in one_line(run_cli("inspect", tmp_path / "none.gguf"), 1)
    (tmp_path / "x.gguf").write_text("hello, this is text")
    assert "not a GGUF file" in one_line(run_cli("inspect", tmp_path / "x.gguf"), 1)
