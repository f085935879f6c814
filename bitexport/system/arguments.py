"""Keeps secrets out of the list of processes."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_COMMAND_LINE = Path("/proc/self/cmdline")


def hide_argument(value: str) -> bool:
    """Overwrite an argument of this process with ``*``, so that ``ps`` no longer shows it.

    Every user of a machine can read the command lines of all processes. This one was readable until now.

    Args:
        value: the argument, or the part of one behind ``=``.

    Returns:
        Whether it is hidden; not possible outside Linux with glibc.
    """
    secret = os.fsencode(value)
    try:
        shown = _COMMAND_LINE.read_bytes()
        # glibc's copy of argv[0]; the kernel shows the memory from there on
        start = ctypes.c_void_p.in_dll(ctypes.CDLL(None), "program_invocation_name").value
    except (OSError, ValueError):
        return False
    if not secret or start is None or ctypes.string_at(start, len(shown)) != shown:
        return False
    at = shown.find(secret)
    while at >= 0:
        ctypes.memset(start + at, ord("*"), len(secret))
        at = shown.find(secret, at + len(secret))
    return secret not in _COMMAND_LINE.read_bytes()
