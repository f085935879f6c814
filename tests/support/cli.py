"""The command line in a process of its own, and what it must say of a mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from tests.support.repository import REPOSITORY


def run(*arguments: str | Path, **options: Any) -> CompletedProcess[str]:
    """``run("convert", ...)`` runs ``python -m bitexport convert ...``, not in debug mode."""
    environment = {name: value for name, value in os.environ.items() if name != "BITEXPORT_DEBUG"}
    environment.update(options.pop("env", {}))
    return subprocess.run(
        [sys.executable, "-m", "bitexport", *map(str, arguments)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )


def one_line(done: CompletedProcess[str], code: int) -> str:
    """The one line on stderr of a command that ended with ``code`` and printed nothing else."""
    assert done.returncode == code, done
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]
