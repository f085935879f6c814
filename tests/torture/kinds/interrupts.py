"""Ctrl-C at a random moment of a command, from its first millisecond: one line, and status 130."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from bitexport.convert import convert
from tests.support.repository import REPOSITORY
from tests.support.tiny_models import Shape, tiny_checkpoint
from tests.torture.workers import GIB, TortureError

SHARE = 3
SECONDS = 120
#: The commands import PyTorch.
MEMORY = 32 * GIB

_FIRST_IMPORT = "from bitexport.system.early_interrupt import end_on_interrupts"


def prepare(folder: Path) -> None:
    shape = Shape(hidden=256, ffn=256, layers=1, heads=2, kv_heads=1)
    convert(tiny_checkpoint(folder / "source", shape=shape), folder / "model.gguf", embed_type="f16")


def execute(chance: random.Random, prepared: Path, folder: Path) -> str:
    model, source = str(prepared / "model.gguf"), str(prepared / "source")
    command = chance.choice(
        (
            ["--version"],
            ["inspect", model],
            ["run", model, "-p", "def", "-n", "50"],
            ["convert", source, str(folder / "out.gguf")],
            ["parity", source, model, "--prompt", "def"],
        )
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "bitexport", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    time.sleep(chance.choice((0.1, 0.3, 2.0)) * chance.random())
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    (folder / "stderr.txt").write_text(errors)
    if left := [file.name for file in folder.iterdir() if file.name not in ("stderr.txt", "out.gguf")]:
        raise TortureError(f"left {left}")
    if process.returncode in (0, 3):
        return "worked, and ended first"
    # not Python's own start, nor the first import, which prepares for Ctrl-C
    ours = f'File "{REPOSITORY / "bitexport"}' in errors and _FIRST_IMPORT not in errors
    if process.returncode != 130 and not ours:
        return "worked: ended before bitexport began"
    if process.returncode != 130 or errors.splitlines()[-1:] != ["interrupted"] or "Traceback" in errors:
        raise TortureError(f"{command[0]} ended with code {process.returncode}: {errors[-200:]!r}")
    return "worked: interrupted"
