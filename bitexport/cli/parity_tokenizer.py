"""The output of ``bitexport parity --tokenizer-only``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bitexport.cli.output import Output

if TYPE_CHECKING:
    from bitexport.parity.tokenizer import Mismatch, TokenizerReport, TokenPiece

_MAX_LISTED = 10


def show_tokenizer(out: Output, report: TokenizerReport) -> None:
    """The first text that differs, token by token; the names of the next ones; and the finding."""
    if report.mismatches:
        first, *others = report.mismatches
        _show_mismatch(out, first)
        for mismatch in others[:_MAX_LISTED]:
            out.wrapped(f"{mismatch.what}, from token {mismatch.at} on: {_quoted(mismatch.text)}")
        if len(others) > _MAX_LISTED:
            out.wrapped(f"and {len(others) - _MAX_LISTED} more")
    out.wrapped(f"{'PASS' if report.passed else 'FAIL'}: {report.describe()}", indent=2)


def _show_mismatch(out: Output, mismatch: Mismatch) -> None:
    out.wrapped(f"{mismatch.what}: {_quoted(mismatch.text, 400)}")
    count = max(len(mismatch.python), len(mismatch.cpp))
    rows = [
        [str(mismatch.begin + index), _cell(mismatch.python, index), _cell(mismatch.cpp, index)]
        for index in range(count)
    ]
    for index, row in enumerate(rows):
        row.append("differs" if row[1].partition(" ")[0] != row[2].partition(" ")[0] else "")
        if mismatch.begin + index == mismatch.at:
            row[3] = "differs first"
    out.table(["token", "Python", "C++", ""], rows, right=["token"])


def _cell(tokens: Sequence[TokenPiece], index: int) -> str:
    return f"{tokens[index].id} {tokens[index].text!r}" if index < len(tokens) else "absent"


def _quoted(text: str, length: int = 70) -> str:
    shown = repr(text)
    return shown if len(shown) <= length else f"{shown[: length - 1]}…"
