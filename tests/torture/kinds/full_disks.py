"""Commands on a disk that is too small: one line that says so, and nothing is left."""

from __future__ import annotations

import functools
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

from bitexport.convert import convert
from tests.support.repository import REPOSITORY
from tests.support.tiny_models import Shape, tiny_checkpoint
from tests.torture.workers import GIB, TortureError

SHARE = 3
SECONDS = 200
#: The commands import PyTorch.
MEMORY = 32 * GIB

#: $1 is the size in KiB, $2 the disk, $3 the list of what is left on it; the rest is the command.
_ON_SMALL_DISK = 'mount -t tmpfs -o size=$1k tmpfs "$2" || exit 99'
_WITH_SMALL_FILES = "ulimit -f $1"
_RUN = """
disk=$2 list=$3
shift 3
TMPDIR=$disk "$@"
code=$?
ls -A "$disk" > "$list"
exit $code
"""
_NAMES_THE_CAUSE = ("no space left", "file too large")


def prepare(folder: Path) -> None:
    shape = Shape(hidden=256, ffn=256, layers=1, heads=2, kv_heads=1)
    convert(tiny_checkpoint(folder / "source", shape=shape), folder / "model.gguf", embed_type="f16")


@functools.cache
def _may_mount() -> bool:
    """Whether a process may have mounts of its own here; in many containers not even root's may."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


def execute(chance: random.Random, prepared: Path, folder: Path) -> str:
    disk, listing = folder / "disk", folder / "left"
    disk.mkdir()
    model, source = str(prepared / "model.gguf"), str(prepared / "source")
    command = chance.choice(
        (
            ["convert", source, str(disk / "out.gguf")],
            ["convert", model, str(disk / "out.gguf"), "--type", "tq2_0"],
            ["doctor", source],
            ["parity", source, model, "--prompt", "def", "--report", str(disk / "page.html")],
        )
    )
    needed = (prepared / "model.gguf").stat().st_size // 1024
    room = chance.choice((4, 8, needed // 4, needed // 2, needed - 8, 8 * needed))
    private = _may_mount()
    small = _ON_SMALL_DISK if private else _WITH_SMALL_FILES
    start = [*(["unshare", "--mount"] if private else []), "sh", "-c", small + _RUN, "sh"]
    done = subprocess.run(
        [*start, str(room), str(disk), str(listing), sys.executable, "-m", "bitexport", *command],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    if done.returncode == 99:
        return "refused: no disk could be mounted"
    left = listing.read_text().split()
    if done.returncode in (0, 3) and left in ([], ["out.gguf"], ["page.html"]):
        return f"worked: {command[0]}, with enough room"
    full = any(cause in done.stderr.lower() for cause in _NAMES_THE_CAUSE)
    if done.returncode != 1 or left or not full:
        raise TortureError(f"{command[0]} ended with {done.returncode}, left {left}: {done.stderr[-250:]!r}")
    return f"refused: {command[0]}, the disk is full"
