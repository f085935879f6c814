"""A few executions of the fuzzer of everything that opens a file, and its mutator."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bitexport.errors import BitexportError
from bitexport.gguf.reader import read_gguf
from tests.fuzz.gguf_mutator import build, mutant, parse

Maker = Callable[..., Path]


def test_damaged_files_never_end_the_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.fuzz_open", "--executions", "60", "--findings", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["executions"], report["failures"]) == (60, [])
    assert report["inspected ran"] > 0
    assert report["inspected GGUFError"] > 0


def test_the_mutator_is_reproducible_and_keeps_the_structure(gguf_of: Maker, tmp_path: Path) -> None:
    seed = gguf_of("packed-multiply")
    assert build(parse(seed))[:4] == b"GGUF"
    (tmp_path / "same.gguf").write_bytes(build(parse(seed)))
    assert len(read_gguf(tmp_path / "same.gguf").tensors) == len(read_gguf(seed).tensors)
    first = [mutant(seed, ("llama", "mamba"), random.Random(number)) for number in range(40)]
    again = [mutant(seed, ("llama", "mamba"), random.Random(number)) for number in range(40)]
    assert first == again
    readable = 0
    for data in first:
        (tmp_path / "x.gguf").write_bytes(data)
        try:
            read_gguf(tmp_path / "x.gguf")
            readable += 1
        except BitexportError:
            pass
    assert len(set(first)) > 30
    assert readable > 15  # most get past the reader of headers
