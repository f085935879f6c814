"""Opens files of unknown origin: a device never ends, and a FIFO makes its reader wait."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

#: Texts that are read whole: prompts, pairs, a document.
MAX_TEXT_BYTES = 256 * 1024 * 1024

_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISDIR, "a folder"),
)


def irregular(mode: int) -> str:
    """What something other than a regular file is, by ``st_mode``; empty for a regular file."""
    if stat.S_ISREG(mode):
        return ""
    return next((name for test, name in _KINDS if test(mode)), "not a file")


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file, or a link to one, for reading.

    Raises:
        OSError: it cannot be opened, or is something else; ``strerror`` says what.
    """
    # opening a FIFO would wait for a writer
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        kind = irregular(os.fstat(descriptor).st_mode)
        if kind:
            raise OSError(errno.EINVAL, f"it is {kind}, expected a regular file", os.fspath(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_text(path: Path, most: int = MAX_TEXT_BYTES) -> str:
    """The UTF-8 text that a user's option names, with line ends as in Python; a FIFO of the shell is as good.

    Raises:
        OSError: it cannot be read, or has more than ``most`` bytes.
        UnicodeDecodeError: it is not UTF-8.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(path))
    return content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")


def read_regular(path: Path, most: int) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: as in :func:`open_regular`; or it has more than ``most`` bytes.
    """
    with open_regular(path) as file:
        content = file.read(most + 1) if os.fstat(file.fileno()).st_size <= most else None
    if content is None or len(content) > most:  # files of /proc have more than their size says
        raise OSError(errno.EFBIG, f"it has more than the {most} bytes that such a file may have", str(path))
    return content
