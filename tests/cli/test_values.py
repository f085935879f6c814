"""Plain values become arguments without pydantic, and exactly as typer would convert them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from bitexport.cli import values
from bitexport.cli.help import Command

TEXTS = [
    "",
    "0",
    "1",
    "7",
    "007",
    "-1",
    "+1",
    "1.5",
    "1e3",
    "nan",
    " 3",
    "3 ",
    "1_000",
    "٣",
    "9" * 25,
    "x",
    "on",
]


def upper(text: str) -> Path:
    if text == "x":
        raise typer.BadParameter("x is taken")
    return Path(text.upper())


def outcome(option: str, text: str, **group: Any) -> Any:
    """What a command gets for an option, or typer's message."""
    got = []
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command(**group)
    def command(
        plain: str = "",
        whole: Annotated[int, typer.Option(min=1, max=100)] = 4,
        real: Annotated[float, typer.Option(min=0.0)] = 0.5,
        free: int | None = None,
        path: Annotated[Path | None, typer.Option(parser=upper)] = None,
        several: list[str] | None = None,
        flag: bool = False,
    ) -> None:
        got.append((plain, whole, real, free, path, several, flag))

    done = CliRunner().invoke(app, [f"--{option}={text}"])
    return [repr(each) for each in got] or done.output


@pytest.mark.parametrize("option", ["plain", "whole", "real", "free", "path", "several"])
@pytest.mark.parametrize("text", TEXTS)
def test_same_value_or_same_message(option: str, text: str) -> None:
    assert outcome(option, text, cls=Command) == outcome(option, text)


def test_plain_values_need_no_typer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "build_runtime_param", None)
    assert outcome("whole", "7", cls=Command) == [repr(("", 7, 0.5, None, None, None, False))]
