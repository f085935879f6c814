"""Captures llama.cpp's log: errors are kept for our messages, and nothing is printed to the terminal."""

from __future__ import annotations

import ctypes
import logging
import re
import sys
from collections import deque
from collections.abc import Sequence
from types import ModuleType

from bitexport.runtime.processes import lock_across_forks

_logger = logging.getLogger("bitexport.native")
_verbose = logging.getLogger("llama-cpp-python")  # llama_cpp.Llama(verbose=True) sets its level to DEBUG

# ggml_log_level of the pinned ggml.h; 5 continues the line before it.
_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}
_CONTINUED = 5
_KEPT_ERRORS = 20
# precedes the reason in llama.cpp's message
_REASON_MARK = "error loading model: "
_FOLDER_OF_SOURCE = re.compile(r"\S*/(?=[\w.-]+:\d+: )")

_errors: deque[str] = deque(maxlen=_KEPT_ERRORS)
_lock = lock_across_forks()
_level = logging.DEBUG
_unfinished = ""
_callback: object = None  # ctypes keeps no reference, and a collected callback would crash


def capture(llama_cpp: ModuleType) -> None:
    """Redirect the log of llama.cpp and ggml to this module."""
    global _callback
    _callback = llama_cpp.llama_log_callback(_receive)
    llama_cpp.llama_log_set(_callback, ctypes.c_void_p(0))


def capture_ggml(base: ctypes.CDLL) -> None:
    """Redirect the log of ggml alone, where a process loads our libraries without libllama.

    Args:
        base: our libggml-base.
    """
    global _callback
    if _callback is None:
        _callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_receive)
        base.ggml_log_set(_callback, None)


def _receive(level: int, text: bytes, _user_data: object) -> None:
    decoded = text.decode("utf-8", errors="replace")
    if _verbose.level == logging.DEBUG:
        print(decoded, end="", file=sys.stderr, flush=True)
    _collect(level, decoded)


def clear() -> None:
    """Discard all errors; call it before an operation whose errors :func:`reason` is to report."""
    with _lock:
        _errors.clear()


def reason(default: str) -> str:
    """Why llama.cpp failed, from its log and without the name of a function.

    That is the reason why a model cannot be loaded, if it logged one; otherwise the first error since
    :func:`clear`; otherwise ``default``.
    """
    with _lock:
        lines = list(_errors)
    return reason_of(lines, default)


def reason_of(lines: Sequence[str], default: str) -> str:
    """The reason in some lines of llama.cpp's log, as :func:`reason` finds it."""
    for line in lines:
        if _REASON_MARK in line:
            return without_folders(line.partition(_REASON_MARK)[2])
    if not lines:
        return default
    head, separator, rest = lines[0].partition(": ")
    return without_folders(rest if separator and head.isidentifier() else lines[0])


def without_folders(text: str) -> str:
    """A message of an assertion without the folder of its source file: ``ggml.c:123: GGML_ASSERT(...)``."""
    return _FOLDER_OF_SOURCE.sub("", text)


def _collect(level: int, text: str) -> None:
    global _level, _unfinished
    with _lock:
        if level != _CONTINUED:
            _level = _LEVELS.get(level, logging.DEBUG)
        *lines, _unfinished = (_unfinished + text).split("\n")
        for line in filter(None, map(str.strip, lines)):
            if _level >= logging.ERROR:
                _errors.append(line)
            _logger.log(_level if _level < logging.WARNING else logging.DEBUG, "%s", line)
