"""Imports go one way: import-linter keeps the contracts in pyproject.toml and notices a climbing import."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import importlinter
import pytest

from tests.support.repository import REPOSITORY


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The packages and pyproject.toml, to be changed."""
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    ignored = shutil.ignore_patterns("__pycache__", "lib")
    shutil.copytree(REPOSITORY / "bitexport", tmp_path / "bitexport", ignore=ignored)
    return tmp_path


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter on the copy, without ``site``: an editable install would lead to this checkout."""
    packages = Path(importlinter.__file__).parents[1]
    program = (
        "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    )
    return subprocess.run(
        [sys.executable, "-S", "-c", program, "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": f"{folder}{os.pathsep}{packages}", "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("gguf/types.py", "import bitexport.runtime.session", "Imports go one way: down"),
        ("bench/limits.py", "import bitexport.doctor.driver", "Imports go one way: down"),
        ("gguf/types.py", "import bitexport.gguf.reader", "No import cycles within a folder"),
        ("gguf/types.py", "import torch", "need no PyTorch"),
        ("metrics/logits.py", "import rich", "typer and rich stay in bitexport.cli"),
        ("cli/train.py", "import train.stages", "Training is imported as bitexport.train"),
    ],
)
def test_an_import_that_climbs_fails(copy: Path, module: str, line: str, broken: str) -> None:
    path = copy / "bitexport" / module
    path.write_text(path.read_text(encoding="utf-8") + f"\n\ndef _climb() -> None:\n    {line}\n")
    done = lint(copy)
    assert done.returncode == 1
    assert any(broken in row and "BROKEN" in row for row in done.stdout.splitlines()), done.stdout


def test_as_it_stands_every_contract_is_kept(copy: Path) -> None:
    done = lint(copy)
    assert done.returncode == 0, done.stdout
