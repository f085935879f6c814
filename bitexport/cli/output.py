"""Output of the commands: results to stdout, everything else to stderr.

Human mode prints tables and sentences; ``--json`` prints one document and nothing else on stdout; ``--quiet``
limits stderr to warnings and errors. Colour and progress bars appear only on terminals, and no colour if
``NO_COLOR`` is set.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from bitexport.errors import BitexportWarning, CheckFailed
from bitexport.progress import Progress, ProgressEvent, ignore

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Task

SCHEMA = 1

_show_other_warning = warnings.showwarning

# If stdout is not a terminal, lines are not wrapped and tables must not be truncated.
_UNLIMITED_WIDTH = 10_000

#: Longer than any message about sane values.
MAX_MESSAGE = 2000

# C0 and C1 without tab and line feed, and the characters that change the direction of text.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Output:
    """All output of a command.

    Args:
        json: print one JSON document on stdout instead of tables and sentences.
        quiet: print no information and no progress on stderr, only warnings and errors.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.quiet = quiet

    def result(
        self, document: Mapping[str, Any], human: Callable[[], None] | None = None, *, awaited: bool = False
    ) -> None:
        """Print a command's result: ``document`` with --json, otherwise what ``human`` prints.

        The key ``schema`` precedes those of the document. NaN and infinity, which JSON lacks, become null.
        If the reader of stdout leaves, as in ``bitexport bench ... | head``, the rest is not printed, and the
        command goes on to the exit code that it would have had: a verdict does not depend on its reader.

        Args:
            document: the keys and values of the result.
            human: prints the result for a person.
            awaited: the command is useless without a reader.

        Raises:
            BrokenPipeError: the reader has left, and the result is ``awaited``.
        """
        try:
            if self.json:
                text = json.dumps({"schema": SCHEMA, **_jsonable(document)}, ensure_ascii=False, indent=2)
                sys.stdout.write(text + "\n")
            elif human is not None:
                human()
            sys.stdout.flush()
        except BrokenPipeError:
            if awaited:
                raise
            discard(sys.stdout)

    def failed(self, message: str) -> CheckFailed:
        """The exception for a check whose result was printed and is below the threshold."""
        error = CheckFailed(message)
        error.shown = not self.json
        return error

    def line(self, text: str = "") -> None:
        """Print a line of the human-readable result on stdout; nothing with --json."""
        if not self.json:
            self._stdout().print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def wrapped(self, text: str, indent: int = 0) -> None:
        """Like :meth:`line`, but wrapped between words if stdout is a terminal.

        Args:
            text: the sentence.
            indent: the indentation of all lines but the first, in columns.
        """
        if self.json:
            return
        self.line(_filled(self._stdout(), text, indent))

    def stream(self, text: str) -> None:
        """Print text of the human-readable result on stdout and flush; nothing with --json."""
        if not self.json:
            sys.stdout.write(text)
            sys.stdout.flush()

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        title: str | None = None,
        right: Sequence[str] = (),
        markdown: bool = False,
    ) -> None:
        """Print a table of the human-readable result on stdout; nothing with --json.

        Args:
            columns: headings.
            rows: cells, converted with ``str``.
            title: a line above the table.
            right: headings of the columns to align to the right (numbers).
            markdown: print a Markdown table, like llama-bench.
        """
        if self.json:
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text

        from bitexport.cli.fitting import broken, column_widths, table_width

        if title is not None:
            self.line(title)
        console = self._stdout()
        cells = [[printable(str(cell)) for cell in row] for row in rows]
        # in a narrow terminal, text is wrapped but numbers are not; and a line of Markdown is a row
        fixed = [markdown or column in right for column in columns]
        widths = column_widths(columns, cells, fixed, console.width)
        table = Table(box=box.MARKDOWN if markdown else box.SIMPLE_HEAD, pad_edge=markdown)
        for column, width in zip(columns, widths, strict=True):
            table.add_column(
                Text(broken(column, width)),
                justify="right" if column in right else "left",
                width=width,
                overflow="fold",
            )
        for row in cells:
            table.add_row(*(Text(broken(cell, width)) for cell, width in zip(row, widths, strict=True)))
        # if the numbers alone need more, the terminal breaks the lines: nothing is left out
        wide = self._stdout(max(console.width, table_width(widths)))
        wide.print(table, soft_wrap=False, crop=False)

    def info(self, text: str) -> None:
        """Print a line of information on stderr, wrapped on a terminal; nothing with --quiet."""
        if not self.quiet:
            console = _stderr()
            _print(console, _filled(console, printable(text)))

    def reply(self, text: str) -> None:
        """Print on stderr what the user of an interactive command asked for, even with --quiet."""
        console = _stderr()
        _print(console, "\n".join(_filled(console, line) for line in printable(text).split("\n")))

    def warn(self, text: str) -> None:
        """Print a warning on stderr, wrapped on a terminal, even with --quiet."""
        console = _stderr()
        _print(console, _filled(console, f"warning: {shortened(printable(text))}", indent=2), style="yellow")

    @contextmanager
    def progress(self, label: str) -> Iterator[Progress]:
        """Show a progress bar on stderr while the ``with`` block runs; yields the callback for a driver.

        Without a terminal or with --quiet there is no bar, and the callback does nothing.
        """
        console = _stderr()
        if self.quiet or not console.is_terminal:
            yield ignore
            return
        from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
        from rich.text import Text

        class Amount(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(_amount(int(task.completed), int(task.total or 0), str(task.fields["unit"])))

        label_column = TextColumn("{task.description}", markup=False)
        with Bar(
            label_column, BarColumn(), Amount(), TimeRemainingColumn(), console=console, transient=True
        ) as bar:
            task = bar.add_task(label, total=None, unit="")

            def update(event: ProgressEvent) -> None:
                bar.update(
                    task,
                    completed=event.done,
                    total=event.total or None,
                    description=f"{label}: {event.label}" if event.label else label,
                    unit=event.unit,
                )

            global _bars_console
            _bars_console = console
            try:
                yield update
            finally:
                _bars_console = None

    @staticmethod
    def _stdout(width: int | None = None) -> Console:
        """The console of stdout, as wide as the terminal if no width is given."""
        from rich.console import Console

        class StdoutConsole(Console):
            def on_broken_pipe(self) -> None:
                raise  # the BrokenPipeError, which rich would turn into SystemExit

        if width is None and not sys.stdout.isatty():
            width = _UNLIMITED_WIDTH
        return StdoutConsole(width=width)


@contextmanager
def until_reader_leaves() -> Iterator[None]:
    """End the command with success if the reader of stdout leaves, as in ``bitexport run ... | head``.

    Only around output that comes bit by bit and judges nothing; :meth:`Output.result` handles the rest.
    """
    try:
        yield
    except BrokenPipeError:
        discard(sys.stdout)
        sys.exit(0)


def discard(stream: TextIO) -> None:
    """Let all further output to stdout or stderr disappear, and what Python has not written yet."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def warning_printer() -> Callable[..., None]:
    """A ``warnings.showwarning`` that prints our own warnings like those of a command, each text once.

    A command that opens a model several times would otherwise repeat what there is to say about it.
    """
    shown: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if not issubclass(category, BitexportWarning):
            _show_other_warning(message, category, *rest, **named)
        elif (text := str(message)) not in shown:
            shown.add(text)
            Output().warn(text)

    return show


def printable(text: str) -> str:
    """The text with control characters escaped, except tabs and line feeds.

    Names and metadata come from files, and a terminal would execute control sequences in them.
    """
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def shortened(text: str) -> str:
    """A message without its middle if that is very long: a value from a file may have megabytes."""
    if len(text) <= MAX_MESSAGE:
        return text
    half = MAX_MESSAGE // 2
    return f"{text[:half]} [{len(text) - 2 * half} characters left out] {text[-half:]}"


def counted(number: int, noun: str, plural: str = "") -> str:
    """``1 round``, ``2 rounds``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {plural or noun + 's'}"


def _filled(console: Console, text: str, indent: int = 0) -> str:
    """The text wrapped between words if it goes to a terminal."""
    import textwrap

    if console.width >= _UNLIMITED_WIDTH or (console.stderr and not console.is_terminal):
        return text
    return textwrap.fill(
        text, console.width, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False,
        drop_whitespace=True, replace_whitespace=False,
    )  # fmt: skip


def wrapped_for_stderr(text: str) -> str:
    """The text wrapped between words if stderr is a terminal."""
    return _filled(_stderr(), text, indent=2)


def _print(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def excerpt(text: str, length: int) -> str:
    """The beginning of a text on one line, of at most ``length`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


def format_bytes(count: float) -> str:
    """``1536`` -> ``"1.50 KiB"``; three significant figures from KiB on."""
    if abs(count) < 1024:
        return f"{int(count)} B"
    power = min(4, int(math.log(abs(count), 1024)))
    count /= 1024**power
    digits = 2 if abs(count) < 10 else 1 if abs(count) < 100 else 0
    return f"{count:.{digits}f} {'KMGT'[power - 1]}iB"


def _amount(done: int, total: int, unit: str) -> str:
    if unit == "B":
        return f"{format_bytes(done)}/{format_bytes(total)}" if total else format_bytes(done)
    return f"{done}/{total} {unit}" if total else f"{done} {unit}"


# The console of the current progress bar: other lines must go through it to appear above the bar.
_bars_console: Console | None = None


def _stderr() -> Console:
    from rich.console import Console

    class StderrConsole(Console):
        def on_broken_pipe(self) -> None:
            discard(sys.stderr)  # ``2>&1 | head``: nobody reads this, but the command can do its work

    return _bars_console or StderrConsole(stderr=True)


def _jsonable(value: Any) -> Any:
    """The value with NaN and infinity as None, NumPy scalars as Python numbers, and other types as text."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, bool) or value is None or isinstance(value, (str, int)):
        return value
    if hasattr(value, "item"):
        return _jsonable(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)
