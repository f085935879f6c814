"""What goes wrong in convert and inspect, on the real command line: one line, a code, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitexport.convert import convert
from bitexport.gguf.reader import read_gguf
from tests.conftest import REPOSITORY

RunCli = Callable[..., CompletedProcess[str]]
Checkpoints = Callable[..., Path]

LAYER = "model.layers.0.mlp.up_proj"


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """A damage to the tensors of a folder with one shard."""

    def damage(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, str(folder / "model.safetensors"))

    return damage


def config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """A damage to config.json."""

    def damage(folder: Path) -> None:
        found = json.loads((folder / "config.json").read_text())
        change(found)
        (folder / "config.json").write_text(json.dumps(found))

    return damage


def index(change: Callable[[dict[str, str]], object]) -> Callable[[Path], None]:
    """A damage to the index of a sharded folder."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        found = json.loads(path.read_text())
        change(found["weight_map"])
        path.write_text(json.dumps(found))

    return damage


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def corrupt_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[9:20] = b"\xff" * 11
    path.write_bytes(bytes(content))


def huge_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[:8] = struct.pack("<Q", 2**60)
    path.write_bytes(bytes(content))


def second_shard(folder: Path) -> Path:
    return next(folder.glob("model-00002-of-*.safetensors"))


# name -> packing, options of the checkpoint, damage, what stderr must say
CASES: dict[str, tuple[str, dict[str, Any], Callable[[Path], object], str]] = {
    "truncated shard": ("master", {}, truncate, r"truncated"),
    "corrupt header": ("master", {}, corrupt_header, r"not valid JSON"),
    "huge header": ("master", {}, huge_header, r"claims 1152921504606846976 bytes"),
    "missing shard": (
        "master",
        {"shards": 2},
        lambda f: second_shard(f).unlink(),
        r"shard model-00002\S* is missing",
    ),
    "truncated second shard": (
        "master",
        {"shards": 2},
        lambda f: os.truncate(second_shard(f), 1000),
        r"model-00002",
    ),
    "index outside the folder": (
        "master",
        {"shards": 2},
        index(lambda m: m.update({"model.norm.weight": "../../../etc/passwd"})),
        r"'../../../etc/passwd' points outside the folder",
    ),
    "index with a tensor no shard has": (
        "master",
        {"shards": 2},
        index(lambda m: m.update({"model.extra": "model-00001-of-00002.safetensors"})),
        r"'model.extra' is not in its shard",
    ),
    "unclaimed tensor": (
        "master",
        {},
        tensors(lambda t: t.update({"model.layers.0.mlp.extra.weight": torch.ones(4)})),
        r"'model.layers.0.mlp.extra.weight' \[4\] is nothing that BitNet b1.58 has",
    ),
    "a layer too many": (
        "master",
        {},
        config(lambda c: c.update(num_hidden_layers=1)),
        r"'model.layers.1.*is nothing",
    ),
    "a layer too few": (
        "master",
        {},
        config(lambda c: c.update(num_hidden_layers=3)),
        r"'model.layers.2.*is missing",
    ),
    "missing tensor": (
        "master",
        {},
        tensors(lambda t: t.pop("model.norm.weight")),
        r"'model.norm.weight' is missing",
    ),
    "missing head": (
        "master",
        {},
        config(lambda c: c.update(tie_word_embeddings=False)),
        r"'lm_head.weight' is missing",
    ),
    "missing scale": (
        "packed-divide",
        {},
        tensors(lambda t: t.pop(f"{LAYER}.weight_scale")),
        rf"'{LAYER}.weight_scale' is missing",
    ),
    "wrong shape": (
        "master",
        {},
        tensors(lambda t: t.update({f"{LAYER}.weight": torch.ones(256, 512)})),
        rf"'{LAYER}.weight' has shape \[256, 512\]; config.json makes it \[512, 256\]",
    ),
    "wrong packed shape": (
        "packed-multiply",
        {},
        tensors(lambda t: t.update({f"{LAYER}.weight": torch.zeros(512, 64, dtype=torch.uint8)})),
        r"has shape \[512, 64\]; config.json makes it \[128, 256\]",
    ),
    "wrong dtype": (
        "master",
        {},
        tensors(lambda t: t.update({"model.norm.weight": torch.ones(256, dtype=torch.int32)})),
        r"'model.norm.weight' has dtype I32",
    ),
    "NaN in master weights": (
        "master",
        {},
        tensors(lambda t: t[f"{LAYER}.weight"].__setitem__((3, 4), float("nan"))),
        rf"'{LAYER}.weight' holds nan",
    ),
    "infinity in a norm": (
        "packed-divide",
        {},
        tensors(lambda t: t["model.norm.weight"].__setitem__(3, float("inf"))),
        r"'model.norm.weight' holds inf",
    ),
    "NaN in the embeddings": (
        "packed-divide",
        {},
        tensors(lambda t: t["model.embed_tokens.weight"].__setitem__((7, 7), float("nan"))),
        r"'model.embed_tokens.weight' holds nan",
    ),
    "code of three": (
        "packed-multiply",
        {},
        tensors(lambda t: t[f"{LAYER}.weight"].__setitem__((5, 6), 0b01110101)),
        rf"'{LAYER}.weight' holds a two-bit value of 3",
    ),
    "scale of zero": (
        "packed-multiply",
        {},
        tensors(lambda t: t[f"{LAYER}.weight_scale"].zero_()),
        rf"'{LAYER}.weight_scale' gives a scale of 0.0",
    ),
    "scale that is NaN": (
        "packed-divide",
        {},
        tensors(lambda t: t[f"{LAYER}.weight_scale"].fill_(float("nan"))),
        rf"'{LAYER}.weight_scale' holds nan",
    ),
    "negative scale": (
        "packed-divide",
        {},
        tensors(lambda t: t[f"{LAYER}.weight_scale"].fill_(-1.0)),
        rf"'{LAYER}.weight_scale' gives a scale of -1.0",
    ),
    "unknown architecture": (
        "master",
        {},
        config(lambda c: c.update(architectures=["GPT9ForCausalLM"])),
        r"unknown architecture 'GPT9ForCausalLM'; expected one of BitNetForCausalLM",
    ),
    "unknown packing": (
        "master",
        {},
        config(lambda c: c["quantization_config"].update(linear_class="superbitlinear")),
        r"unknown packing: linear_class 'superbitlinear'",
    ),
    "unknown quantization": (
        "master",
        {},
        config(lambda c: c["quantization_config"].update(quant_method="awq")),
        r"quant_method 'awq' is not ternary",
    ),
    "no quantization": (
        "master",
        {},
        config(lambda c: c.pop("quantization_config")),
        r"no quantization_config",
    ),
    "packed, said to be master": (
        "packed-multiply",
        {},
        config(lambda c: c["quantization_config"].update(quantization_mode="online")),
        r"has dtype U8, but quantization_config says online",
    ),
    "absurdly many layers": (
        "master",
        {},
        config(lambda c: c.update(num_hidden_layers=2**31 - 1)),
        r"num_hidden_layers is 2147483647, but there are only 24 tensors",
    ),
    "absurdly large RoPE base": (
        "master",
        {},
        config(lambda c: c.update(rope_parameters={"rope_theta": 1e39})),
        r"rope_theta is 1e\+39",
    ),
    "another activation": ("master", {}, config(lambda c: c.update(hidden_act="gelu")), r"hidden_act 'gelu'"),
    "config that is no JSON": (
        "master",
        {},
        lambda f: (f / "config.json").write_text("{"),
        r"config.json: not valid JSON",
    ),
    "no tokenizer": ("master", {}, lambda f: (f / "tokenizer.json").unlink(), r"no tokenizer.json"),
    "vocabulary too long": (
        "master",
        {},
        config(lambda c: c.update(vocab_size=100)),
        r"embed_tokens.*config.json makes it",
    ),
    "no weights": ("master", {}, lambda f: (f / "model.safetensors").unlink(), r"no model.safetensors"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder for outputs, checked to be empty again at the end."""
    made = tmp_path / "out"
    made.mkdir()
    yield made
    assert list(made.iterdir()) == []


def one_line(done: CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_nothing_left(
    tmp_path: Path, folder: Path, checkpoint_of: Checkpoints, run_cli: RunCli, name: str
) -> None:
    packing, options, damage, message = CASES[name]
    shutil.copytree(checkpoint_of(packing, **options), tmp_path / "c")
    damage(tmp_path / "c")
    done = run_cli("convert", tmp_path / "c", folder / "x.gguf", "--embed-type", "f16")
    line = one_line(done, 1)
    assert line.startswith("error: ")
    assert re.search(message, line), line


def test_an_existing_output(tmp_path: Path, checkpoint_of: Checkpoints, run_cli: RunCli) -> None:
    (tmp_path / "x.gguf").write_text("mine")
    done = run_cli("convert", checkpoint_of(), tmp_path / "x.gguf")
    assert "exists already; use --force" in one_line(done, 1)
    assert (tmp_path / "x.gguf").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [tmp_path / "x.gguf"]


def test_a_forced_output_that_fails_stays_as_it_was(
    tmp_path: Path, checkpoint_of: Checkpoints, run_cli: RunCli
) -> None:
    shutil.copytree(checkpoint_of("packed-divide"), tmp_path / "c")
    tensors(lambda t: t["model.norm.weight"].fill_(float("nan")))(tmp_path / "c")
    (tmp_path / "x.gguf").write_text("mine")
    one_line(run_cli("convert", tmp_path / "c", tmp_path / "x.gguf", "--force"), 1)
    assert (tmp_path / "x.gguf").read_text() == "mine"
    assert sorted(tmp_path.iterdir()) == [tmp_path / "c", tmp_path / "x.gguf"]


@pytest.mark.parametrize(
    ("output", "shards"),
    [
        ("c/model.safetensors", 1),
        ("c/model-00002-of-00002.safetensors", 2),
        ("c/tokenizer.json", 1),
        ("link.gguf", 1),
        ("hard.gguf", 1),
        ("c/../c/config.json", 1),
        ("c/new", 1),
    ],
)
def test_the_checkpoint_is_never_the_output(
    tmp_path: Path, checkpoint_of: Checkpoints, run_cli: RunCli, output: str, shards: int
) -> None:
    source = shutil.copytree(checkpoint_of(shards=shards), tmp_path / "c")
    (tmp_path / "link.gguf").symlink_to(source / "model.safetensors")
    if output == "hard.gguf":
        (source / "model.safetensors").rename(tmp_path / "hard.gguf")
        os.link(tmp_path / "hard.gguf", source / "model.safetensors")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    done = run_cli("convert", source, tmp_path / output, "--force", "--embed-type", "f16")
    if output == "hard.gguf":
        # another name of the same bytes: the name is replaced, the bytes stay
        assert done.returncode == 0, done.stderr
    else:
        assert "lies in the checkpoint that is converted" in one_line(done, 1)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_a_shard_elsewhere_is_not_the_output_either(
    tmp_path: Path, checkpoint_of: Checkpoints, run_cli: RunCli
) -> None:
    """As in Hugging Face's cache, where snapshots hold links into blobs."""
    source = shutil.copytree(checkpoint_of(), tmp_path / "snapshots" / "1234")
    (tmp_path / "blobs").mkdir()
    (blob := tmp_path / "blobs" / "abc").write_bytes((source / "model.safetensors").read_bytes())
    (source / "model.safetensors").unlink()
    (source / "model.safetensors").symlink_to(blob)
    before = blob.read_bytes()
    assert "would be lost" in one_line(run_cli("convert", source, blob, "--force"), 1)
    assert blob.read_bytes() == before


def test_an_output_beside_the_weights(tmp_path: Path, checkpoint_of: Checkpoints, run_cli: RunCli) -> None:
    source = shutil.copytree(checkpoint_of(), tmp_path / "c")
    done = run_cli("convert", source, source / "model.gguf", "--embed-type", "f16")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments", [("--type", "q4_0"), ("--embed-type", "tq2_0"), ("--no-such-option",), ("extra", "words")]
)
def test_wrong_usage(
    folder: Path, checkpoint_of: Checkpoints, run_cli: RunCli, arguments: tuple[str, ...]
) -> None:
    line = one_line(run_cli("convert", checkpoint_of(), folder / "x.gguf", *arguments), 2)
    assert "--help" in line


def test_no_checkpoint(tmp_path: Path, folder: Path, run_cli: RunCli) -> None:
    line = one_line(run_cli("convert", tmp_path / "none", folder / "x.gguf"), 1)
    assert "does not exist; expected a checkpoint folder" in line


def test_no_folder_for_the_output(folder: Path, checkpoint_of: Checkpoints, run_cli: RunCli) -> None:
    line = one_line(run_cli("convert", checkpoint_of(), folder / "none" / "x.gguf"), 1)
    assert "does not exist; create it first" in line


def test_debug_shows_the_traceback(tmp_path: Path, folder: Path, run_cli: RunCli) -> None:
    done = run_cli("convert", tmp_path / "none", folder / "x.gguf", env={"BITEXPORT_DEBUG": "1"})
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_json_errors_leave_stdout_empty(tmp_path: Path, folder: Path, run_cli: RunCli) -> None:
    one_line(run_cli("convert", tmp_path / "none", folder / "x.gguf", "--json"), 1)


# -- a full disk ---------------------------------------------------------------------------------------------


def small_disk(place: Path) -> bool:
    """Mount a disk of 256 KiB, which needs root and a kernel that lets us."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True, check=False
    )
    return done.returncode == 0


def test_a_full_disk(tmp_path: Path, checkpoint_of: Checkpoints, run_cli: RunCli) -> None:
    (place := tmp_path / "disk").mkdir()
    if not small_disk(place):
        pytest.skip("cannot mount a small disk here (no root); the limit on file sizes below takes its place")
    try:
        done = run_cli("convert", checkpoint_of(), place / "x.gguf", "--embed-type", "f16")
        left = list(place.iterdir())
    finally:
        subprocess.run(["umount", str(place)], check=True)
    assert "No space left on device; free some space" in one_line(done, 1)
    assert left == []


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.argv = ["bitexport", *sys.argv[1:]]
{before}
from bitexport.cli import main
main()
"""


@pytest.mark.parametrize("reserve", [True, False])
def test_a_file_that_may_not_grow(folder: Path, checkpoint_of: Checkpoints, reserve: bool) -> None:
    """Both where the space is asked for at once and, without that, in the middle of the tensors."""
    before = "" if reserve else "import os; del os.posix_fallocate"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            LIMITED.format(limit=200_000, before=before),
            *("convert", str(checkpoint_of()), str(folder / "x.gguf"), "--embed-type", "f16"),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "File too large; raise the limit" in one_line(done, 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(folder: Path, checkpoint_of: Checkpoints, run_cli: RunCli) -> None:
    folder.chmod(0o555)
    try:
        done = run_cli("convert", checkpoint_of(), folder / "x.gguf")
    finally:
        folder.chmod(0o755)
    assert "Permission denied; choose a folder" in one_line(done, 1)


# -- interrupted ---------------------------------------------------------------------------------------------

SLOW = """
import sys, time
import bitexport.convert as module
original = module.encode
def slow(*arguments):
    print("started", flush=True)
    time.sleep(0.2)
    yield from original(*arguments)
module.encode = slow
from bitexport.cli import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted(tmp_path: Path, checkpoint_of: Checkpoints, number: signal.Signals) -> None:
    arguments = ["convert", str(checkpoint_of()), str(tmp_path / "x.gguf"), "--embed-type", "f16"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    time.sleep(0.3)  # in the middle of the second tensor
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert not (tmp_path / "x.gguf").exists()
    if number is not signal.SIGKILL:
        assert (process.returncode, stderr) == (130, "interrupted\n")
        assert list(tmp_path.iterdir()) == []


# -- inspect -------------------------------------------------------------------------------------------------


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
def test_type_36_with_a_scale_that_is_none(
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


def test_inspecting_what_is_not_there(tmp_path: Path, run_cli: RunCli) -> None:
    assert "cannot be read" in one_line(run_cli("inspect", tmp_path / "none.gguf"), 1)
    (tmp_path / "x.gguf").write_text("hello, this is text")
    assert "not a GGUF file" in one_line(run_cli("inspect", tmp_path / "x.gguf"), 1)
