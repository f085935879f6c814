"""The complete program: help, version, exit codes, and a fast start."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

import bitexport
from tests.support.repository import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Cli = Callable[..., "CompletedProcess[str]"]
COMMANDS = ("convert", "parity", "bench", "run", "chat", "embed", "inspect", "doctor", "eval", "card", "push")


def test_help_names_every_command(run_cli: Cli) -> None:
    result = run_cli("--help")
    assert result.returncode == 0
    assert result.stderr == ""
    for command in COMMANDS:
        assert command in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(run_cli: Cli, command: str) -> None:
    result = run_cli(command, "-h")
    assert result.returncode == 0
    assert "--json" in result.stdout
    assert "--quiet" in result.stdout


def test_the_version_equals_that_of_pyproject(run_cli: Cli) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert run_cli("--version").stdout == f"bitexport {project['version']}\n"
    assert bitexport.__version__ == project["version"]


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("json", ["", "--json"])
def test_closed_streams(gguf_of: Callable[..., Path], closed: str, json: str) -> None:
    command = f"'{sys.executable}' -m bitexport inspect '{gguf_of('packed-multiply')}' {json} {closed}"
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    command = f"'{sys.executable}' -m bitexport inspect /none.gguf {json} {closed}"
    done = subprocess.run(["/bin/sh", "-c", command], cwd=REPOSITORY, capture_output=True, check=False)
    assert done.returncode == 1


def test_no_command_shows_help_and_is_wrong_usage(run_cli: Cli) -> None:
    result = run_cli()
    assert result.returncode == 2
    assert "Usage" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--frobnicate",), "No such option: --frobnicate; see bitexport --help"),
        (("frobnicate",), "No such command 'frobnicate'; see bitexport --help"),
        (("inspect",), "see bitexport inspect --help"),
        (("run", "x.gguf"), "no prompt is given; give one of --prompt TEXT"),
        (("parity", "a", "b", "--tokens", "many"), "see bitexport parity --help"),
    ],
)
def test_wrong_usage(run_cli: Cli, arguments: tuple[str, ...], text: str) -> None:
    result = run_cli(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert text in result.stderr
    assert result.stderr.count("\n") == 1


def test_errors_go_to_stderr_with_json_too(run_cli: Cli, tmp_path: Path) -> None:
    result = run_cli("bench", tmp_path / "none.gguf", "--json")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_traceback_on_request(run_cli: Cli, tmp_path: Path) -> None:
    result = run_cli("bench", tmp_path / "none.gguf", env={"BITEXPORT_DEBUG": "1"})
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_missing_extra_is_one_line(run_cli: Cli, tmp_path: Path) -> None:
    # a folder at the front of the path where importing torch fails as if it were not installed
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    path = f"{tmp_path}:{REPOSITORY}"
    result = run_cli("parity", tmp_path, tmp_path / "x.gguf", env={"PYTHONPATH": path})
    assert result.returncode == 1
    assert "pip install 'bitexport[parity]'" in result.stderr
    assert result.stderr.count("\n") == 1


def test_starts_without_heavy_libraries() -> None:
    code = (
        "import sys\n"
        "from bitexport.cli import app\n"
        "heavy = {'torch', 'transformers', 'numpy', 'llama_cpp', 'gguf', 'tokenizers'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    start = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == ""
    assert time.perf_counter() - start < 10  # a fraction of a second; a busy machine may take longer


def test_importing_the_package_is_light() -> None:
    code = "import sys, bitexport; print(sorted({'numpy', 'typer', 'gguf', 'torch'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
