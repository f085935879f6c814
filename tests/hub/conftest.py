"""Each test has a hub of its own on loopback, and a cache of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.support import hub as loopback
from tests.support.cli import run
from tests.support.hub import Hub

Cli = Callable[..., "CompletedProcess[str]"]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with loopback.serve() as running:
        yield running


@pytest.fixture
def cli(hub: Hub, tmp_path: Path) -> Cli:
    """``cli("run", ...)``: the command with this test's hub and cache; ``env`` adds variables."""

    def run_here(
        *arguments: str | Path, env: dict[str, str] | None = None, **more: Any
    ) -> CompletedProcess[str]:
        return run(*arguments, env=loopback.environment(hub, tmp_path / "home", **(env or {})), **more)

    return run_here


@pytest.fixture
def offline(tmp_path: Path) -> Cli:
    """The same cache, and a hub that nobody serves."""

    def run_here(
        *arguments: str | Path, env: dict[str, str] | None = None, **more: Any
    ) -> CompletedProcess[str]:
        return run(*arguments, env=loopback.environment(None, tmp_path / "home", **(env or {})), **more)

    return run_here


def document(done: CompletedProcess[str]) -> dict[str, Any]:
    """The JSON document of a command that succeeded without a word on stderr."""
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    return found
