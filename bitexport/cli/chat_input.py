"""Reads the messages of ``bitexport chat``: from a terminal with history, otherwise line by line."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass

from bitexport.errors import UsageError

#: A line of only this begins and ends a message of several lines.
FENCE = '"""'

_PROMPT, _CONTINUED = "> ", ". "


@dataclass(frozen=True, slots=True)
class Entry:
    """What was entered: a message, or a command, which is one line that begins with ``/``."""

    text: str
    is_command: bool = False

    @property
    def command(self) -> tuple[str, str]:
        """The command's name, with its slash, and the rest of the line."""
        name, _, rest = self.text.partition(" ")
        return name, rest.strip()


class Reader:
    """Reads messages from stdin.

    Attributes:
        interactive: whether somebody types them, with a prompt, and with a history if stdout is a terminal.
    """

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty()
        self._editing = self.interactive and sys.stdout.isatty()
        if self._editing:
            with suppress(ImportError):  # Python may be built without it
                import readline  # noqa: F401 (input() then edits lines and remembers them)

    def read(self) -> Entry | None:
        """The next message or command; None at the end of the input.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
            UsageError: the input is not UTF-8, or ends within a message of several lines.
        """
        while True:
            line = self._line(_PROMPT)
            if line is None:
                return None
            if line.strip() == FENCE:
                return Entry(self._block())
            if line.endswith("\\"):
                return Entry(self._continued(line))
            if line.strip():
                return Entry(line.strip(), True) if line.startswith("/") else Entry(line)

    def _block(self) -> str:
        lines: list[str] = []
        while True:
            line = self._line(_CONTINUED)
            if line is None:
                raise UsageError(f"the input ends within a {FENCE} block; close it with a line of {FENCE}")
            if line.strip() == FENCE:
                return "\n".join(lines)
            lines.append(line)

    def _continued(self, line: str) -> str:
        lines = []
        while line.endswith("\\"):
            lines.append(line[:-1])
            following = self._line(_CONTINUED)
            if following is None:
                raise UsageError("the input ends after a backslash, which continues a message; leave it out")
            line = following
        return "\n".join([*lines, line])

    def _line(self, prompt: str) -> str | None:
        """A line without its end; None at the end of the input."""
        if self._editing:
            try:
                return input(prompt)
            except EOFError:
                print()  # Ctrl-D leaves the cursor behind the prompt
                return None
        if self.interactive:
            print(prompt, end="", file=sys.stderr, flush=True)
        data = sys.stdin.buffer.readline()
        if not data:
            return None
        try:
            return data.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UsageError(f"a line of the input is not UTF-8 ({error.reason}); give UTF-8 text") from error
