"""The ``bitexport`` command: one module per command, one output object, one error table, and no logic."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from inspect import cleandoc
from typing import Annotated

import typer

import bitexport
from bitexport.cli import errors
from bitexport.cli.help import Command, Group
from bitexport.cli.interrupt import terminable
from bitexport.cli.output import discard, until_reader_leaves, warning_printer
from bitexport.errors import BitexportWarning
from bitexport.system.early_interrupt import raise_interrupts

# In the order of --help; each is a module of that name.
COMMANDS = (
    *("convert", "parity", "bench", "run", "chat", "serve", "worker", "embed"),
    *("inspect", "doctor", "eval", "card", "push", "train"),
)
_FUNCTIONS = {"eval": "evaluate"}  # where a function is not called like its module


def program(names: Sequence[str] = COMMANDS) -> typer.Typer:
    """The command line with some commands: importing and describing all of them takes a tenth of a second.

    Commands import their driver inside the function, so that --help is fast.
    """
    found = typer.Typer(
        name="bitexport",
        help="Ternary language models: from PyTorch checkpoints to fast, verified GGUF files.",
        epilog=(
            "Exit codes: 0 success; 1 failure; 2 wrong usage; 3 a check's result is below its threshold; "
            "130 interrupted. BITEXPORT_DEBUG=1 shows tracebacks."
        ),
        cls=Group,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    found.callback(invoke_without_command=True)(_root)
    for name in names:
        module = import_module(f"bitexport.cli.{name}")
        function = getattr(module, _FUNCTIONS.get(name, name))
        kind = module.BenchCommand if name == "bench" else Command
        found.command(name, help=_help(function), cls=kind)(function)
    return found


def __getattr__(name: str) -> typer.Typer:
    """``app``: the command line with all commands."""
    if name != "app":
        raise AttributeError(name)
    return program()


def _help(command: Callable[..., None]) -> str:
    """A command's docstring with each paragraph on one line: typer would keep the line breaks."""
    paragraphs = cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)


def _version(wanted: bool) -> None:
    if wanted:
        with until_reader_leaves():
            print(f"bitexport {bitexport.__version__}", flush=True)
        raise typer.Exit


def _root(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 (its callback does the work)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


def _open_closed_streams() -> None:
    """Open the standard streams that the caller closed (``>&-``) on the null device.

    Otherwise the next file that is opened would get their number, and a library's output would end up in it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (open until the end)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: never a traceback, always a documented exit code.

    Args:
        arguments: without the program's name; ``sys.argv[1:]`` if None.
    """
    _open_closed_streams()
    warnings.showwarning = warning_printer()
    warnings.simplefilter("always", BitexportWarning)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the terminal's encoding may lack a model's characters
    try:
        raise_interrupts()
        with terminable():
            given = sys.argv[1:] if arguments is None else arguments
            app = program([given[0]] if given and given[0] in COMMANDS else COMMANDS)
            code = app(given, prog_name="bitexport", standalone_mode=False)
    except BrokenPipeError:
        discard(sys.stdout)
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(errors.report(error))
    if code == errors.INTERRUPTED:  # typer turns Ctrl-C into this number
        print("interrupted", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)
