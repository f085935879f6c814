"""Requests that would kill the process are rejected in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Maker = Callable[..., Path]
Cli = Callable[..., "CompletedProcess[str]"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--prompt", "x", "--threads", "100000"], "100000 threads were requested"),
        (["run", "--prompt", "x", "--ctx", "99999999999"], "a context of 99999999999 tokens was requested"),
        (["run", "--prompt", "caf\udcff"], "the prompt is not UTF-8 at character 3"),
        (["bench", "--gen-tokens", "99999999999"], "a context of 99999999999 tokens was requested"),
        (["bench", "--threads", "1000"], "1000 threads were requested"),
    ],
)
def test_impossible_requests_are_rejected(
    gguf_of: Maker, run_cli: Cli, arguments: list[str], said: str
) -> None:
    command, *options = arguments
    done = run_cli(command, gguf_of("packed-multiply"), *options)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
