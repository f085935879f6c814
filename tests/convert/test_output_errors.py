"""Outputs that cannot or must not be written, and conversions that are interrupted: nothing is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.support.cli import one_line
from tests.support.damaged_checkpoints import tensors
from tests.support.repository import REPOSITORY

RunCli = Callable[..., CompletedProcess[str]]
Checkpoints = Callable[..., Path]


def test_an_existing_output(tmp_path: Path, checkpoint_of: Checkpoints, run_cli: RunCli) -> None:
    (tmp_path / "x.gguf").write_text("mine")
    done = run_cli("convert", checkpoint_of(), tmp_path / "x.gguf")
    assert "already exists; use --force" in one_line(done, 1)
    assert (tmp_path / "x.gguf").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [tmp_path / "x.gguf"]


def test_a_failed_forced_conversion_keeps_the_old_output(
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
        assert "is inside the checkpoint being converted" in one_line(done, 1)
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
    assert "could destroy the checkpoint" in one_line(run_cli("convert", source, blob, "--force"), 1)
    assert blob.read_bytes() == before


def test_an_output_next_to_the_weights(tmp_path: Path, checkpoint_of: Checkpoints, run_cli: RunCli) -> None:
    source = shutil.copytree(checkpoint_of(), tmp_path / "c")
    done = run_cli("convert", source, source / "model.gguf", "--embed-type", "f16")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["x" * 250 + ".gguf", "é" * 122 + "x.gguf"])
def test_the_longest_name(name: str, tmp_path: Path, checkpoint_of: Checkpoints, run_cli: RunCli) -> None:
    done = run_cli("convert", checkpoint_of(), tmp_path / name)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_name_that_is_too_long(empty_folder: Path, checkpoint_of: Checkpoints, run_cli: RunCli) -> None:
    done = run_cli("convert", checkpoint_of(), empty_folder / ("x" * 251 + ".gguf"))
    assert one_line(done, 1).endswith("x.gguf: file name too long; give a shorter name")


# -- a full disk --------------------------------------------------------------------------------------------


def small_disk(place: Path) -> bool:
    """Mount a disk of 256 KiB, which needs root and a kernel that allows it."""
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


def test_doctor_on_a_full_disk_blames_the_disk(empty_folder: Path, checkpoint_of: Checkpoints) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED.format(limit=20_000, before=""), "doctor", str(checkpoint_of())],
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(empty_folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    line = one_line(done, 1)
    assert f"doctor needs room for a temporary file: {empty_folder}" in line
    assert "File too large; raise the limit" in line
    assert "TMPDIR chooses another folder" in line


@pytest.mark.parametrize("reserve", [True, False])
def test_a_file_that_may_not_grow(empty_folder: Path, checkpoint_of: Checkpoints, reserve: bool) -> None:
    """Both if the space is reserved at the start and, without that, in the middle of the tensors."""
    before = "" if reserve else "import os; del os.posix_fallocate"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            LIMITED.format(limit=200_000, before=before),
            *("convert", str(checkpoint_of()), str(empty_folder / "x.gguf"), "--embed-type", "f16"),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "File too large; raise the limit" in one_line(done, 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(
    empty_folder: Path, checkpoint_of: Checkpoints, run_cli: RunCli
) -> None:
    empty_folder.chmod(0o555)
    try:
        done = run_cli("convert", checkpoint_of(), empty_folder / "x.gguf")
    finally:
        empty_folder.chmod(0o755)
    assert "Permission denied; choose a folder" in one_line(done, 1)


# -- interrupted --------------------------------------------------------------------------------------------

SLOW = """
import sys, time
from bitexport.convert.from_checkpoint import CheckpointSource
original = CheckpointSource.encode_tensor
def slow(*arguments):
    print("started", flush=True)
    time.sleep(0.2)
    yield from original(*arguments)
CheckpointSource.encode_tensor = slow
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
