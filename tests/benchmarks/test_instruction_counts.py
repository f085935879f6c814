"""The check of instruction counts: counts, stores, compares, and reports why if it cannot."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import REPOSITORY

SCRIPT = REPOSITORY / "benchmarks" / "check_instruction_counts.py"


def _run(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_an_increased_count_is_reported(tmp_path: Path) -> None:
    counts = tmp_path / "counts.json"
    result = _run("--counts", counts)
    assert result.returncode == 1
    assert "record the counts of a good build with --update" in result.stderr
    assert _run("--counts", counts, "--update").returncode == 0
    kept = json.loads(counts.read_text())
    key = next(key for key in kept["instructions"] if key.startswith("scalar 2bit decode"))
    kept["instructions"][key] = int(kept["instructions"][key] / 1.04)
    counts.write_text(json.dumps(kept))
    result = _run("--counts", counts)
    assert result.returncode == 3, result.stderr
    (line,) = result.stdout.splitlines()
    assert line.startswith(f"{key}: ")
    assert "4.0% above" in line


def test_missing_valgrind_or_binary_is_reported(tmp_path: Path) -> None:
    result = _run(env={"PATH": str(tmp_path)})
    assert result.returncode == 1
    assert "valgrind is not installed" in result.stderr
