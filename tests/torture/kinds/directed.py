"""The directed cases, which are tests: what once did damage, one module of tests per case."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from bitexport.runtime.trial import VARIABLE
from tests.support.repository import REPOSITORY
from tests.torture.workers import GIB, TortureError, case_number

SHARE = 10
SECONDS = 900
#: The tests import PyTorch.
MEMORY = 32 * GIB

_MODULES = (
    "checkpoint/test_hostile.py",
    "runtime/test_hostile_files.py",
    "runtime/test_hostile_numbers.py",
    "runtime/test_libllama_checks.py",
    "runtime/test_loading.py",
    "runtime/test_trial.py",
    "tokenizer/chat",
    "torture/test_foreign.py",
    "integration/test_killed.py",
    "convert/test_output_errors.py",
)
CASES = len(_MODULES)


def prepare(folder: Path) -> None:
    """The tests make their own files."""


def execute(chance: random.Random, prepared: Path, folder: Path) -> str:  # noqa: ARG001
    module = f"tests/{_MODULES[case_number(folder)]}"
    options = ["-q", "-x", "-p", "no:cacheprovider", f"--basetemp={folder / 'tests'}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, module],
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if name != VARIABLE},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        print(done.stdout, done.stderr)
        failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
        raise TortureError(f"{module}: {(failed or ['it did not run'])[0]}")
    return f"worked: {module}"
