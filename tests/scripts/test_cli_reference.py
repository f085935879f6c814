"""docs/cli.md is generated from the commands, and an outdated one is detected."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.repository import REPOSITORY


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(REPOSITORY / "scripts" / "cli_reference.py"))


def test_rows(script: dict[str, Any]) -> None:
    page = script["page"]()
    assert "\n    bitexport doctor [CKPT] [FILE.gguf] [OPTIONS]\n" in page
    run = page.partition("\n## run\n")[2].partition("\n## ")[0]
    assert "| `--max-tokens` `--n-predict` `-n` | `N` 1 or more | Maximum number" in run
    assert "| `--min-p` | `X` 0 to 1 | " in run
    assert run.count("Default: `0.95`.") == 1
    assert "| `--echo` |  | Print the prompt" in run
    assert "| `--align` or `--plain` |  | " in page
    assert "more. Default: `--align`" in page.replace("unmodified.", "more.")


def test_text_is_not_markdown_by_accident(script: dict[str, Any]) -> None:
    shown = script["_text"]("*.bin, a_b [c] <d> | and --plot, `--x`, q6_k, llama-batched-bench's -npl")
    assert shown == (r"\*.bin, a\_b \[c\] \<d\> \| and `--plot`, `--x`, q6\_k, llama-batched-bench's `-npl`")


def test_an_outdated_page_is_found(
    script: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "cli.md"
    monkeypatch.setitem(script["main"].__globals__, "PAGE", page)
    monkeypatch.setattr("sys.argv", ["cli_reference.py"])
    script["main"]()
    monkeypatch.setattr("sys.argv", ["cli_reference.py", "--check"])
    script["main"]()
    page.write_text(page.read_text().replace("--echo", "--eco"))
    with pytest.raises(SystemExit, match="out of date; run scripts/cli_reference"):
        script["main"]()


def test_the_page_is_always_the_same() -> None:
    """Python's sets, in which typer keeps the names of --help, have another order in every process."""
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "scripts/cli_reference.py", "--check"],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
        )
