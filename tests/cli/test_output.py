"""Results go to stdout, the rest to stderr; --json prints only JSON; colour and bars only on terminals."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from bitexport.cli.output import Output, format_bytes, warning_printer
from bitexport.errors import BitexportWarning
from bitexport.progress import ProgressEvent
from tests.support.repository import REPOSITORY


def test_json_is_one_document_with_a_schema(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(json=True)
    out.line("not shown")
    out.table(("a",), [("b",)])
    out.stream("not shown")
    out.result({"x": np.float32(0.5), "y": [float("nan"), float("inf")], "path": Path("a/b"), "ok": True})
    text, error = capsys.readouterr()
    assert json.loads(text) == {"schema": 1, "x": 0.5, "y": [None, None], "path": "a/b", "ok": True}
    assert next(iter(json.loads(text))) == "schema"
    assert error == ""


def test_json_does_not_escape_text(capsys: pytest.CaptureFixture[str]) -> None:
    Output(json=True).result({"text": "naïve ☃"})
    assert "naïve ☃" in capsys.readouterr().out


def test_human_result(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output()
    out.result({"x": 1}, human=lambda: out.line("x is 1 [bold]really[/bold]"))
    assert capsys.readouterr() == ("x is 1 [bold]really[/bold]\n", "")


def test_information_and_warnings_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output()
    out.info("reading")
    out.warn("odd")
    assert capsys.readouterr() == ("", "reading\nwarning: odd\n")


def test_quiet_keeps_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(quiet=True)
    out.info("reading")
    out.warn("odd")
    assert capsys.readouterr() == ("", "warning: odd\n")


def test_tables_are_not_truncated(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    Output().table(("name", "size"), [(long, 12), ("[red]y[/red]", 3)], right=("size",))
    text = capsys.readouterr().out
    assert long in text
    assert "[red]y[/red]" in text


def test_numbers_wider_than_the_terminal_stay_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    numbers = [str(index) * 12 for index in range(1, 5)]
    for markdown in (True, False):
        Output().table(("what", *"abcd"), [("words", *numbers)], right=tuple("abcd"), markdown=markdown)
        row = next(line for line in capsys.readouterr().out.splitlines() if "words" in line)
        assert row.replace("|", " ").split() == ["words", *numbers]


def test_a_warning_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    show = warning_printer()
    for text in ("odd", "other", "odd"):
        show(BitexportWarning(text), BitexportWarning, "file.py", 1)
    assert capsys.readouterr().err == "warning: odd\nwarning: other\n"


def test_control_characters_of_a_file_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output()
    text = "\x1b[31mred\x07\r\x9b2J\x7f\u202eback"
    out.line(text)
    out.table(("name",), [(text,)])
    out.info(text)
    out.warn(text)
    shown, error = capsys.readouterr()
    escaped = r"\x1b[31mred\x07\r\x9b2J\x7f\u202eback"
    assert shown.count(escaped) == error.count(escaped) == 2
    assert not set(shown + error) & set("\x1b\x07\r\x9b\x7f\u202e")
    out.line("naïve\t👩‍👩‍👧\nשלום")
    assert capsys.readouterr().out.split() == ["naïve", "👩‍👩‍👧", "שלום"]


def test_markdown_table(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table(("test", "t/s"), [("pp8", "1.0 ± 0.1")], right=("t/s",), markdown=True)
    header, rule, row = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert header.split("|")[1:3] == [" test ", "       t/s "]
    assert set(rule.strip()) <= {"|", "-", ":"}
    assert row.split("|")[1].strip() == "pp8"


def test_no_bar_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Output().progress("working") as progress:
        progress(ProgressEvent(1, 2, "B", "x"))
    assert capsys.readouterr() == ("", "")


SCRIPT = """
from bitexport.cli.output import Output
from bitexport.progress import ProgressEvent
out = Output(quiet=QUIET)
out.warn("odd")
with out.progress("working") as progress:
    progress(ProgressEvent(1024, 4096, "B", "tensor 1"))
"""


def on_a_terminal(script: str, **environment: str) -> str:
    """stderr of a script whose stderr is a terminal."""
    master, slave = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        stderr=slave,
        env={**kept, "TERM": "xterm-256color", "COLUMNS": "120", **environment},
    )
    os.close(slave)
    chunks = []
    try:
        while chunk := os.read(master, 4096):
            chunks.append(chunk)
    except OSError:  # Linux: the other end is closed
        pass
    os.close(master)
    assert process.wait(timeout=60) == 0
    return b"".join(chunks).decode()


def test_lines_printed_during_a_bar_appear_above_it() -> None:
    """They start on a line that was cleared, not behind the bar."""
    script = (
        SCRIPT.replace("QUIET", "False") + '    out.info("said between")\n    out.warn("warned between")\n'
    )
    text = on_a_terminal(script, NO_COLOR="1")
    for words in ("said between", "warning: warned between"):
        assert text.count(words) == 1
        before = re.split("\x1b\\[2K|\n", text[: text.index(words)])[-1]
        assert before.strip() == "", "the bar is in front of it"


def test_bar_and_colour_on_a_terminal() -> None:
    text = on_a_terminal(SCRIPT.replace("QUIET", "False"))
    assert "\x1b[33m" in text  # a yellow warning
    assert "working: tensor 1" in text
    assert "1.00 KiB/4.00 KiB" in text


def test_no_color() -> None:
    text = on_a_terminal(SCRIPT.replace("QUIET", "False"), NO_COLOR="1")
    assert "warning: odd" in text
    assert "\x1b[3" not in text  # no foreground colour, though a bar may move the cursor


def test_quiet_has_no_bar() -> None:
    text = on_a_terminal(SCRIPT.replace("QUIET", "True"))
    assert "warning: odd" in text.replace("\x1b[33m", "").replace("\x1b[0m", "")
    assert "working" not in text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (15 << 20, "15.0 MiB"),
        (1_180_000_000, "1.10 GiB"),
        (3 << 50, "3072 TiB"),
    ],
)
def test_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_a_narrow_terminal_does_not_truncate_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Output, "_stdout", staticmethod(lambda width=40: Console(width=width)))
    rows = [["a prompt of many words, more than fit", "0.99985088", "5.2e-03"]]
    Output().table(["prompt", "cosine", "KL"], rows, right=["cosine", "KL"])
    shown = capsys.readouterr().out
    assert "0.99985088" in shown
    assert "5.2e-03" in shown
    assert max(map(len, shown.splitlines())) <= 40
