"""Every failure is one line on stderr and a documented exit code; a traceback only on request."""

from __future__ import annotations

import errno

import pytest
import typer

from bitexport import errors as failures
from bitexport.cli import errors

CASES = [
    (
        failures.CheckpointError("a.safetensors is cut off; copy it again"),
        1,
        "error: a.safetensors is cut off",
    ),
    (failures.UnsupportedError("no"), 1, "error: no"),
    (failures.TokenizerError("no"), 1, "error: no"),
    (failures.GGUFError("no"), 1, "error: no"),
    (failures.OutputError("no"), 1, "error: no"),
    (failures.NativeLibraryError("no"), 1, "error: no"),
    (failures.UsageError("--x is 3"), 2, "error: --x is 3"),
    (failures.CheckFailed("cosine is 0.5"), 3, "failed: cosine is 0.5"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (typer.Abort(), 130, "interrupted"),
    (typer.BadParameter("must be positive."), 2, "must be positive; see bitexport --help"),
    (ModuleNotFoundError("No module", name="torch"), 1, "pip install 'bitexport[parity]'"),
    (
        ModuleNotFoundError("No module", name="transformers.models"),
        1,
        "needs the Python package transformers",
    ),
    (ModuleNotFoundError("No module", name="matplotlib"), 1, "pip install 'bitexport[plot]'"),
    (ModuleNotFoundError("No module", name="datasets"), 1, "pip install 'bitexport[train]'"),
    (ModuleNotFoundError("No module", name="left_pad"), 1, "pip install left_pad"),
    (
        OSError(errno.ENOSPC, "No space left on device", "out.gguf"),
        1,
        "out.gguf: no space left on device; free",
    ),
    (
        PermissionError(errno.EACCES, "Permission denied", "/x"),
        1,
        "/x: permission denied; check its permissions",
    ),
    (MemoryError(), 1, "error: out of memory"),
    (RuntimeError("two\nlines\n"), 1, "error: RuntimeError: two lines; this is a bug in bitexport"),
    (ZeroDivisionError(), 1, "BITEXPORT_DEBUG=1"),
    (failures.CheckpointError("tensor '\x1b[2Jx'"), 1, r"error: tensor '\x1b[2Jx'"),
]


@pytest.mark.parametrize(("error", "code", "text"), CASES, ids=lambda value: type(value).__name__)
def test_one_line_and_a_code(
    error: BaseException,
    code: int,
    text: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("BITEXPORT_DEBUG", raising=False)
    assert errors.report(error) == code
    out, line = capsys.readouterr()
    assert out == ""
    assert text in line
    assert line.count("\n") == 1


def test_every_error_class_has_a_row() -> None:
    for name in dir(failures):
        kind = getattr(failures, name)
        if isinstance(kind, type) and issubclass(kind, failures.BitexportError):
            row = next(row for row in errors.TABLE if issubclass(kind, row.kind))
            assert row.exit_code == kind.exit_code, name


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_traceback_on_request(
    value: str, shown: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITEXPORT_DEBUG", value)
    error = failures.GGUFError("bad")
    error.__cause__ = ValueError("the cause")
    assert errors.report(error) == 1
    text = capsys.readouterr().err
    assert ("ValueError: the cause" in text) is shown
    assert text.splitlines()[-1] == "error: bad"
