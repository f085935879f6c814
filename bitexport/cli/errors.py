"""Turns an exception into one line on stderr and an exit code.

Exit codes: 0 success; 1 failure; 2 wrong usage; 3 a check ran and its result is below the threshold; 130
interrupted. ``BITEXPORT_DEBUG=1`` also shows the traceback.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import typer

from bitexport.cli.output import discard, printable, shortened, wrapped_for_stderr
from bitexport.errors import BitexportError, CheckFailed, UsageError

DEBUG_VARIABLE = "BITEXPORT_DEBUG"
INTERRUPTED = 130

# The extra that installs a module which a plain installation lacks.
EXTRA_OF_MODULE = {
    "torch": "parity",
    "transformers": "parity",
    "accelerate": "parity",
    "safetensors": "parity",
    "matplotlib": "plot",
    "sacrebleu": "eval",
    "datasets": "train",
    "lm_eval": "tasks",
    "sentencepiece": "sentencepiece",
}


@dataclass(frozen=True, slots=True)
class _Row:
    kind: type[BaseException]
    exit_code: int
    prefix: str
    message: Callable[[BaseException], str]


def _usage(error: BaseException) -> str:
    assert isinstance(error, typer.TyperException)
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "bitexport"
    return f"{error.format_message().rstrip('.')}; see {command} --help"


def _missing_module(error: BaseException) -> str:
    assert isinstance(error, ModuleNotFoundError)
    module = (error.name or "?").partition(".")[0]
    extra = EXTRA_OF_MODULE.get(module)
    package = f"'bitexport[{extra}]'" if extra else f"{module}, or reinstall bitexport"
    return f"this command needs the Python package {module}, which is not installed; pip install {package}"


def _operating_system(error: BaseException) -> str:
    assert isinstance(error, OSError)
    where = f"{error.filename}: " if error.filename else ""
    reason = error.strerror or str(error)
    advice = {
        errno.ENOSPC: "; free some space, or write to another disk",
        errno.EDQUOT: "; free some space, or write to another disk",
        errno.EACCES: "; check its permissions",
        errno.ENOENT: "; check the path",
        errno.ENAMETOOLONG: "; give a shorter name",
    }.get(error.errno or 0, "")
    return f"{where}{reason[:1].lower()}{reason[1:]}{advice}"


def _unexpected(error: BaseException) -> str:
    advice = f"this is a bug in bitexport; run again with {DEBUG_VARIABLE}=1 and report the output"
    return f"{type(error).__name__}: {str(error).strip()}; {advice}"


def _memory(_error: BaseException) -> str:
    return "out of memory; close other programs, or use a smaller model or context"


# The first matching row is used, so subclasses come before their base classes.
TABLE: tuple[_Row, ...] = (
    _Row(CheckFailed, CheckFailed.exit_code, "failed", str),
    _Row(UsageError, UsageError.exit_code, "error", str),
    _Row(BitexportError, BitexportError.exit_code, "error", str),
    _Row(typer.TyperException, 2, "error", _usage),
    _Row(KeyboardInterrupt, INTERRUPTED, "", lambda _: "interrupted"),
    _Row(typer.Abort, INTERRUPTED, "", lambda _: "interrupted"),
    _Row(ModuleNotFoundError, 1, "error", _missing_module),
    _Row(MemoryError, 1, "error", _memory),
    _Row(OSError, 1, "error", _operating_system),
    _Row(Exception, 1, "error", _unexpected),
)


def report(error: BaseException) -> int:
    """Print the line for ``error`` and return the exit code."""
    row = next(row for row in TABLE if isinstance(error, row.kind))
    if os.environ.get(DEBUG_VARIABLE, "") not in ("", "0"):
        traceback.print_exception(error)
    # messages of libraries may have several lines
    text = shortened(printable(" ".join(row.message(error).split())))
    if not (isinstance(error, CheckFailed) and error.shown and sys.stdout.isatty() and sys.stderr.isatty()):
        try:
            print(wrapped_for_stderr(f"{row.prefix}: {text}" if row.prefix else text), file=sys.stderr)
        except BrokenPipeError:  # ``2>&1 | head``; the exit code stays
            discard(sys.stderr)
    return row.exit_code
