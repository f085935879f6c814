"""Twins are the same model; the comparison times them in turns and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from bitexport.bench import compare
from bitexport.bench import compare as compare_module
from bitexport.bench.comparison import _rows
from bitexport.bench.measure import BenchTest
from bitexport.bench.twins import build_twin
from bitexport.convert import convert
from bitexport.errors import GGUFError, OutputError, UnsupportedError, UsageError
from bitexport.gguf.reader import read_gguf
from tests.support.gguf_files import tensors_of, values
from tests.support.repository import REPOSITORY

Maker = Callable[..., Path]
Cli = Callable[..., "CompletedProcess[str]"]


@pytest.mark.parametrize("kind", ["f16", "tq2_0", "q4_0"])
def test_a_twin_differs_in_its_ternary_tensors_only(gguf_of: Maker, tmp_path: Path, kind: str) -> None:
    source = gguf_of("packed-multiply")
    twin = tmp_path / "twin.gguf"
    build_twin(source, twin, kind)
    before, after = tensors_of(source), tensors_of(twin)
    assert list(before) == list(after)
    for name, (type_name, shape, data) in before.items():
        if type_name != "i2_s":
            assert after[name] == (type_name, shape, data)
            continue
        assert after[name][:2] == (kind, shape)
        np.testing.assert_allclose(
            values(read_gguf(twin), name), values(read_gguf(source), name), rtol=2**-11
        )
    old, new = read_gguf(source), read_gguf(twin)
    changed = {key for key in old.metadata if old.raw(key) != new.raw(key)}
    assert changed == {"general.file_type"}


def test_every_type_is_measured_and_the_temporary_folder_goes(
    gguf_of: Maker, run_cli: Cli, tmp_path: Path
) -> None:
    arguments = (
        "bench",
        gguf_of("packed-multiply"),
        "--compare",
        "-t",
        "1",
        "--prompt-tokens",
        "16",
        "-n",
        "4",
        "-r",
        "2",
    )
    result = run_cli(*arguments, "--json", env={"TMPDIR": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["schema"] == 1
    kinds = ["i2_s", "f16", "tq2_0", "q4_0"]
    assert [(row["test"], row["type"]) for row in document["rows"]] == [
        (test, kind) for test in ("pp16", "tg4") for kind in kinds
    ]
    for row in document["rows"]:
        assert row["tokens_per_second"] > 0
        assert (row["ratio"] is None) == (row["type"] == "i2_s")
        if row["ratio"] is not None:
            assert row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
    assert document["bytes"]["f16"] > document["bytes"]["q4_0"] > document["bytes"]["tq2_0"]
    assert list(tmp_path.iterdir()) == []


def test_kept_twins_are_used_again(gguf_of: Maker, run_cli: Cli, tmp_path: Path) -> None:
    arguments = ("bench", gguf_of("packed-multiply"), "-t", "1", "--prompt-tokens", "8", "-n", "0", "-r", "1")
    result = run_cli(*arguments, "--compare", "q4_0", "--keep", tmp_path, env={"BITEXPORT_TIER": "scalar"})
    assert result.returncode == 0, result.stderr
    (twin,) = tmp_path.iterdir()
    assert f"kept {twin}" in result.stdout
    assert "BITEXPORT_TIER limits i2_s to scalar" in result.stdout
    made = twin.stat().st_mtime_ns
    compare(
        gguf_of("packed-multiply"),
        types=["q4_0"],
        threads=[1],
        prompt_tokens=[8],
        generated_tokens=[],
        rounds=1,
        keep=tmp_path,
    )
    assert twin.stat().st_mtime_ns == made


def test_disturbed_rounds_are_thrown_away() -> None:
    seconds = [{"i2_s": 1.0, "f16": 4.0}, {"i2_s": 9.0, "f16": 9.0}, {"i2_s": 1.0, "f16": 5.0}]
    _, twin = _rows(BenchTest("pp", 10), 1, "i2_s", seconds, [0.05, 0.5, 0.1])
    assert (twin.ratio, twin.rounds, twin.disturbed_rounds, twin.disturbed) == (4.5, 2, 1, False)
    _, twin = _rows(BenchTest("pp", 10), 1, "i2_s", seconds, [0.5, 0.5, 0.5])
    assert (twin.ratio, twin.rounds, twin.disturbed_rounds, twin.disturbed) == (4.0, 3, 3, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "q8_0"], "a twin cannot be 'q8_0'; expected some of f16,tq2_0,q4_0"),
        (["--compare", "--batch", "1,2"], "do not go together"),
        (["--keep", "."], "add --compare"),
    ],
)
def test_wrong_usage(gguf_of: Maker, run_cli: Cli, arguments: list[str], message: str) -> None:
    result = run_cli("bench", gguf_of("packed-multiply"), *arguments)
    assert result.returncode == 2
    assert message in result.stderr


def test_a_file_with_block_scales(gguf_of: Maker, run_cli: Cli, tmp_path: Path) -> None:
    """Its twins are the same file on llama.cpp's own kernels, and float16."""
    file = tmp_path / "file.gguf"
    build_twin(gguf_of("packed-multiply"), file, "tq2_0")
    numbers = ("-t", "1", "--prompt-tokens", "8", "-n", "0", "-r", "1", "--json")
    result = run_cli("bench", "--compare", file, *numbers)
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)["rows"]
    assert [row["type"] for row in rows] == ["tq2_0", "llama.cpp", "f16"]
    assert [row["ratio"] is None for row in rows] == [True, False, False]
    result = run_cli("bench", file, "--compare", "tq2_0")
    assert result.returncode == 2
    assert "a twin cannot be 'tq2_0'; expected some of llama.cpp,f16,q4_0" in result.stderr


def test_a_file_that_our_kernels_do_not_run(gguf_of: Maker, tmp_path: Path) -> None:
    file = tmp_path / "file.gguf"
    build_twin(gguf_of("packed-multiply"), file, "f16")
    with pytest.raises(UsageError, match=r"has no tensors of type i2_s, .*bitexport convert .* OUT\.gguf"):
        compare(file)
    # the advice, followed
    convert(file, tmp_path / "out.gguf")
    compare(
        tmp_path / "out.gguf", types=["f16"], threads=[1], prompt_tokens=[8], generated_tokens=[], rounds=1
    )


def test_too_little_room(gguf_of: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = gguf_of("packed-multiply")
    module = sys.modules[compare_module.__module__]
    with pytest.raises(OutputError, match="is not a folder; create it first"):
        compare(file, keep=tmp_path / "none")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: _Usage())  # type: ignore[attr-defined]
    with pytest.raises(OutputError, match=r"twins need 0\.00 GiB in .*, which has 0\.00 GiB; name a folder"):
        compare(file)
    monkeypatch.setattr(module, "available_bytes", lambda: 1 << 30)
    with pytest.raises(
        UnsupportedError, match=r"but only 1\.00 GiB is free; compare fewer types: --compare tq2_0"
    ):
        compare(file)


class _Usage:
    free = 1000


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGILL, "ended by SIGILL: .*cannot execute; build .* `make native`"),
        (signal.SIGKILL, "ended by SIGKILL; is there enough memory"),
        (signal.SIGSEGV, "ended with code -11; run the file alone"),
    ],
)
def test_a_worker_that_dies_says_how(gguf_of: Maker, number: signal.Signals, message: str) -> None:
    from bitexport.bench.worker import Worker

    with Worker(gguf_of(), 32, {}) as worker:
        os.kill(worker._process.pid, number)
        with pytest.raises(GGUFError, match=message):
            worker.seconds(BenchTest("pp", 8), threads=1)


def test_a_worker_that_cannot_load_says_why(gguf_of: Maker, tmp_path: Path) -> None:
    from bitexport.bench.worker import Worker

    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(gguf_of("packed-multiply").read_bytes()[:-4000])
    with pytest.raises(GGUFError, match=r"damaged\.gguf"):
        Worker(damaged, 16, {})


def test_interrupted_it_leaves_nothing(gguf_of: Maker, tmp_path: Path) -> None:
    arguments = ["bench", str(gguf_of("packed-multiply")), "--compare", "-t", "1", "-r", "100000"]
    with subprocess.Popen(
        [sys.executable, "-m", "bitexport", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for _ in range(600):
            workers = _children(process.pid)
            if len(workers) == 4:
                break
            time.sleep(0.1)
        assert len(workers) == 4
        process.send_signal(signal.SIGINT)
        try:
            _, stderr = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130
    assert stderr.strip() == "interrupted"
    assert list(tmp_path.iterdir()) == []
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def _children(process: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        found += [int(child) for child in task.read_text().split()]
    return found
