"""Renders chat templates in :mod:`.worker`, one process for all of them, which starts when it is needed."""

from __future__ import annotations

import atexit
import builtins
import contextlib
import json
import os
import pickle
import subprocess
import threading
from collections.abc import Mapping
from typing import Any

import jinja2.exceptions

from bitexport.system.limited import ending, python_process
from bitexport.tokenizer.chat.check import TemplateError, check_template

#: Memory of the worker, Python included.
MAX_BYTES = 1 << 30

#: Time for one rendering. An ordinary one takes less than a millisecond.
MAX_SECONDS = 5.0

_WORKER = "bitexport.tokenizer.chat.worker"


def render_template(template: str, variables: Mapping[str, Any]) -> str:
    """The text that a chat template makes of its variables.

    Args:
        template: the template.
        variables: ``messages`` and so on; plain values, or others that can be pickled.

    Raises:
        TemplateError: the template cannot be used (see :func:`check_template`), or needs more than
            :data:`MAX_BYTES` or :data:`MAX_SECONDS`.
        ValueError: the template calls ``raise_exception``.
        Exception: whatever else jinja2 or the template raises: an exception of jinja2 or of Python, with its
            message.
    """
    check_template(template)
    try:
        request = pickle.dumps((template, dict(variables)))
    except Exception as error:  # pickle raises many kinds, each with a message about an object
        raise TypeError(f"a chat template gets plain values; {error}") from error
    with _lock:
        answer = _answer(request)
    if "text" in answer:
        return str(answer["text"])
    raise _exception(answer["error"], answer["message"])


def _exception(name: str, message: str) -> Exception:
    if name == "RaisedError":
        return ValueError(message)
    if name == "MemoryError":
        return TemplateError(f"needs more than {MAX_BYTES >> 20} MiB of memory")
    for module in (jinja2.exceptions, builtins):
        kind = getattr(module, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            with contextlib.suppress(TypeError):  # some need more arguments
                return kind(message)
    return RuntimeError(f"{name}: {message}")


# -- the process --------------------------------------------------------------------------------------------

_lock = threading.Lock()
_process: subprocess.Popen[bytes] | None = None


def _forget() -> None:
    """In a forked child: the process answers to the parent, which may have held the lock."""
    global _lock, _process
    _lock = threading.Lock()
    _process = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _start() -> subprocess.Popen[bytes]:
    process = python_process(_WORKER, str(MAX_BYTES), str(MAX_SECONDS))
    return subprocess.Popen(**process, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _answer(request: bytes) -> Any:
    """The worker's answer; the worker is ended if there is none."""
    global _process
    if _process is not None and _process.poll() is not None:  # somebody has ended it since the last answer
        _end(_process, 0)
    process = _process = _process or _start()
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):  # reading the answer reports it
            process.stdin.write(len(request).to_bytes(8, "little") + request)
            process.stdin.flush()
        length = process.stdout.read(8)
        content = process.stdout.read(int.from_bytes(length, "little")) if len(length) == 8 else b""
        if content:
            return json.loads(content)
    except BaseException:  # Ctrl-C too: the next answer would be that of this request
        _end(process, 0)
        raise
    code = _end(process, 1)
    raise TemplateError(ending(code, MAX_BYTES, MAX_SECONDS))


def _end(process: subprocess.Popen[bytes], grace: float) -> int:
    """End the worker after ``grace`` seconds, and return its exit code."""
    global _process
    _process = None
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):  # a request that was never read is still buffered
                stream.close()
    return process.wait()


@atexit.register
def _at_exit() -> None:
    if _process is not None:
        _end(_process, 0)
