"""The check of instruction counts: counts, stores, compares, and reports why if it cannot."""

from __future__ import annotations

import json
import runpy
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


def test_missing_qemu_or_binary_is_reported(tmp_path: Path) -> None:
    result = _run("--arm", env={"PATH": str(tmp_path)})
    assert result.returncode == 1
    assert "qemu-aarch64 is not installed" in result.stderr
    (tmp_path / "qemu-aarch64").write_text("#!/bin/sh\n")
    (tmp_path / "qemu-aarch64").chmod(0o755)
    result = _run("--arm", "--binary", tmp_path / "none", env={"PATH": str(tmp_path)})
    assert result.returncode == 1
    assert "none is missing; build it with `make test-arm`" in result.stderr


def test_arm_counts_repeat() -> None:
    binary = REPOSITORY / "build/arm/ternary/bench_once"
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not installed")
    if not binary.is_file():
        pytest.skip("build/arm/ternary/bench_once is not built; make test-arm builds it")
    count = runpy.run_path(str(SCRIPT))["count_in_qemu"]
    first = count(binary, "neon", "2bit", "32x2560", 1, 1)
    assert first > 32 * 2560 / 64  # more than one instruction for 64 weights
    assert count(binary, "neon", "2bit", "32x2560", 1, 2) == first


def test_the_recorded_arm_counts_are_those_of_the_tiers() -> None:
    kept = json.loads((REPOSITORY / "benchmarks/instruction_counts_arm.json").read_text())
    assert kept["machine"] == "aarch64"
    assert {key.split()[0] for key in kept["instructions"]} == {"neon", "dotprod", "i8mm"}
    assert {key.split()[2] for key in kept["instructions"]} == {"decode", "prefill"}
