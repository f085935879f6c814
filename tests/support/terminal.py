"""A command on a real pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType

from tests.support.repository import REPOSITORY

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\x07")


class Terminal:
    """``Terminal("chat", model)`` runs ``python -m bitexport chat model`` on a terminal.

    Args:
        arguments: of the command.
        columns: the terminal's width.
        output: where stdout goes, if not to the terminal.

    Attributes:
        shown: everything that was shown so far, without escape sequences.
    """

    def __init__(self, *arguments: str | Path, columns: int = 80, output: int | None = None) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        hidden = ("COLUMNS", "LINES", "BITEXPORT_DEBUG", "INPUTRC")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bitexport", *map(str, arguments)],
            cwd=REPOSITORY,
            env={**environment, "TERM": "xterm", "NO_COLOR": "1"},
            stdin=slave,
            stdout=slave if output is None else output,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C arrives
        )
        os.close(slave)
        self._raw = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    @property
    def shown(self) -> str:
        return _ESCAPE.sub("", self._raw.decode("utf-8", errors="replace")).replace("\r", "")

    def type(self, text: str) -> None:
        """Press keys; ``\\n`` is the return key, ``\\x03`` Ctrl-C, ``\\x04`` Ctrl-D."""
        os.write(self._master, text.encode("utf-8"))

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until a text has been shown this many times.

        Raises:
            AssertionError: it is not within a minute.
        """
        end = time.monotonic() + 60
        while self.shown.count(text) < times:
            assert self._read(end), f"{text!r} was not shown {times} times in {self.shown!r}"

    def wait_for_more(self, characters: int) -> None:
        """Wait until this many more characters have been shown."""
        wanted = len(self.shown) + characters
        end = time.monotonic() + 60
        while len(self.shown) < wanted:
            assert self._read(end), self.shown

    def finish(self) -> int:
        """Wait for the end of the command; returns its exit code."""
        end = time.monotonic() + 120
        while self._read(end):
            pass
        return self.process.wait(timeout=60)

    def _read(self, end: float) -> bool:
        """Read what there is; False at the end of the command or of the time."""
        ready, _, _ = select.select([self._master], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux: the other end is closed
            return False
        self._raw += data
        return bool(data)
