"""``bitexport bench --draft``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

from tests.support.cli import one_line
from tests.support.tiny_models import Shape

Maker = Callable[..., Path]
Cli = Callable[..., "CompletedProcess[str]"]


def test_the_report(gguf_of: Maker, run_cli: Cli, tmp_path: Path) -> None:
    model = gguf_of("packed-multiply", embed_type="q6_k", shape=Shape(context=4096))
    options = ("bench", model, "--draft", "lookup", "-t", "1", "-r", "2", "-n", "64")
    document = json.loads(run_cli(*options, "--json", "-q").stdout)
    assert document["drafts"] is True
    repeating, prose = document["rows"]
    assert repeating["tokens_per_pass"] > 1.5 * prose["tokens_per_pass"] > 1
    assert repeating["exact"] is True
    assert repeating["tokens"] == 64
    for row in document["rows"]:
        assert row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
    (tmp_path / "mine.txt").write_text("one two three " * 40)
    shown = run_cli(*options, "--draft-text", tmp_path / "mine.txt", "-q").stdout
    assert "mine.txt" in shown
    assert max(map(len, shown.splitlines()[2:-3])) <= 80


def test_options_that_do_not_fit(gguf_of: Maker, run_cli: Cli, tmp_path: Path) -> None:
    model = gguf_of("packed-multiply")
    assert "leave one of them out" in one_line(
        run_cli("bench", model, "--draft", "lookup", "--compare", "f16"), 2
    )
    assert "leave out the others" in one_line(run_cli("bench", model, "--draft", "lookup", "-b", "2"), 2)
    assert "add --draft" in one_line(run_cli("bench", model, "--draft-text", tmp_path / "x"), 2)
    none = ("--draft", "lookup", "--draft-text", tmp_path / "none")
    assert "none" in one_line(run_cli("bench", model, *none), 2)
    (tmp_path / "short").write_text("x")
    short = ("--draft", "lookup", "--draft-text", tmp_path / "short", "-r", "1")
    assert "give another text" in one_line(run_cli("bench", model, *short), 2)
