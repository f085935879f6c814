"""kill -9 during convert: the output is missing, the old file, or complete."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bitexport.convert import convert
from bitexport.gguf.reader import read_gguf
from tests.support.repository import PROGRAMS
from tests.support.tiny_models import Shape

ROUNDS = 50


def test_fifty_kills_leave_no_half_written_file(checkpoint_of: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = checkpoint_of("master", shape=Shape(hidden=512, ffn=2048, layers=4))
    out = tmp_path / "out.gguf"
    script = PROGRAMS / "kill_convert.py"
    ended = subprocess.run(
        [sys.executable, script, checkpoint, out, str(ROUNDS), "7"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["nothing"] + found["old"] + found["new"] == ROUNDS
    assert found["killed"] >= ROUNDS // 2, "most kills must hit a conversion that still runs"
    assert found["nothing"] > 0
    assert found["old"] > 0

    # temporary files that killed conversions left behind do not interfere
    convert(checkpoint, out, force=True)
    assert read_gguf(out).tensors
