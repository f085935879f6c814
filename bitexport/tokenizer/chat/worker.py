"""Renders chat templates in a process of its own, with limits on memory and time.

Reads requests from stdin and answers each on stdout. Both begin with their length, 8 bytes, little-endian. A
request is a pickled ``(template, variables)``; an answer is JSON: ``{"text": ...}``, or ``{"error": ...}``
with the name of the exception's class and ``"message"``. It exits when stdin ends, and the system ends it at
a deadline, which also works inside one long operation.
"""

from __future__ import annotations

import functools
import json
import os
import pickle
import struct
import sys
from typing import IO, TYPE_CHECKING

from bitexport.system.limited import deadline, set_limits
from bitexport.tokenizer.chat.environment import ChatEnvironment

if TYPE_CHECKING:
    from jinja2 import Template

LENGTH = struct.Struct("<Q")

#: A model's context has some million characters.
MAX_OUTPUT = 64 * 1024 * 1024


def main(memory: str, seconds: str) -> None:
    """Answer requests.

    Args:
        memory: the address space that the process may use, in bytes.
        seconds: the time for one request.
    """
    set_limits(int(memory))
    sys.setrecursionlimit(2000)  # what the check compiled with the usual limit also compiles here
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # other output must not be taken for an answer
    while request := _read(requests):
        deadline(float(seconds))
        answer = _answer(request)
        deadline(0)
        answers.write(LENGTH.pack(len(answer)) + answer)
        answers.flush()


def _read(stream: IO[bytes]) -> bytes:
    length = stream.read(LENGTH.size)
    return stream.read(LENGTH.unpack(length)[0]) if length else b""


def _answer(request: bytes) -> bytes:
    try:
        template, variables = pickle.loads(request)
        text = _compiled(template).render(variables)
        if len(text) > MAX_OUTPUT:
            return _error("MemoryError", f"its result has {len(text)} characters")
        return json.dumps({"text": text}).encode()
    except MemoryError:
        _compiled.cache_clear()
        return _error("MemoryError", "")
    except Exception as error:  # whatever the template makes of its input
        return _error(type(error).__name__, str(error)[:1000])


def _error(name: str, message: str) -> bytes:
    return json.dumps({"error": name, "message": message}).encode()


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> Template:
    return _environment().from_string(template)


@functools.cache
def _environment() -> ChatEnvironment:
    return ChatEnvironment()
