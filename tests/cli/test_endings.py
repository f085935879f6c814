"""How commands end when they are interrupted or nobody reads on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.support.cli import one_line
from tests.support.repository import REPOSITORY

Cli = Callable[..., "CompletedProcess[str]"]

# Takes the place of a library that bitexport imports, and presses Ctrl-C during that import.
INTERRUPTING = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"


@pytest.mark.skipif(os.name != "posix", reason="os.kill with SIGINT is POSIX")
def test_ctrl_c_during_the_imports(run_cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text(INTERRUPTING)
    path = os.pathsep.join((str(tmp_path), str(REPOSITORY), os.environ.get("PYTHONPATH", "")))
    # a shell's background jobs, of which the tests may be one, ignore SIGINT
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert one_line(run_cli("--version", env={"PYTHONPATH": path}), 130) == "interrupted"
    finally:
        signal.signal(signal.SIGINT, previous)


@pytest.mark.skipif(os.name != "posix", reason="pipes close differently elsewhere")
@pytest.mark.parametrize("options", [(), ("--json",), ("--echo", "--logprobs", "2")])
def test_run_for_a_reader_that_leaves(gguf_of: Callable[..., Path], options: tuple[str, ...]) -> None:
    """``bitexport run ... | head``."""
    command = [
        sys.executable,
        "-m",
        "bitexport",
        "run",
        str(gguf_of("packed-multiply")),
        "-p",
        "a",
        "-n",
        "40",
    ]
    process = subprocess.Popen(
        [*command, "--quiet", *options], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 0


@pytest.mark.skipif(os.name != "posix", reason="file names are text elsewhere")
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_run_a_path_that_is_not_utf_8(
    gguf_of: Callable[..., Path], run_cli: Cli, tmp_path: Path, options: tuple[str, ...]
) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.gguf")
    try:
        path.write_bytes(gguf_of("packed-multiply").read_bytes())
    except OSError:
        pytest.skip("this file system has only names that are UTF-8")
    done = run_cli("run", path, "-p", "a", "-n", "3", "--quiet", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_a_threshold_that_is_not_a_number(
    checkpoint_of: Callable[..., Path], gguf_of: Callable[..., Path], run_cli: Cli
) -> None:
    done = run_cli("parity", checkpoint_of(), gguf_of(), "--min-cosine", "nan")
    assert "min_cosine is nan; expected a number from -1 to 1" in one_line(done, 2)
