"""Grammars that a generated text follows: in llama.cpp's GBNF, or made from a JSON schema."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from bitexport.errors import UsageError
from bitexport.runtime import log
from bitexport.runtime.levels import cpu_library_file
from bitexport.runtime.library import api, bind
from bitexport.runtime.trial import VARIABLE
from bitexport.system.native_files import library_file

#: What llama-cpp-python's translation of a schema takes into account.
KEYWORDS = (
    *("type", "format", "const", "enum", "pattern", "minLength", "maxLength"),
    *("properties", "additionalProperties", "required"),
    *("items", "prefixItems", "minItems", "maxItems"),
    *("$ref", "$defs", "definitions", "oneOf", "anyOf", "allOf"),
)
#: Keywords without a meaning for validity.
ANNOTATIONS = (
    *("title", "description", "default", "examples", "$schema", "$id", "$comment"),
    *("deprecated", "readOnly", "writeOnly"),
)
FORMATS = re.compile(r"date|time|date-time|uuid[1-5]?")

_MOST_SECONDS = 10

# Half of the least stack that threads have, so that what fits here fits there.
_PROGRAM = """
import ctypes, sys
cpu, library = sys.argv[1:]
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, 1 << 20))
except (ImportError, OSError, ValueError):
    pass  # not on this system
cpu_library = ctypes.CDLL(cpu)  # libllama finds the one that is already loaded
parse = ctypes.CDLL(library).llama_sampler_init_grammar
parse.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p]
parse.restype = ctypes.c_void_p
sys.exit(0 if parse(None, sys.stdin.buffer.read(), b"root") else 1)
"""


def json_schema_grammar(schema: str) -> str:
    """The grammar of JSON documents that follow a JSON schema.

    Raises:
        UsageError: the schema is not JSON, or uses something that the grammar would not enforce.
    """
    to_grammar = bind().llama_grammar.json_schema_to_gbnf
    try:
        parsed = json.loads(schema)
    except ValueError as error:
        raise UsageError(f"the JSON schema is not JSON: {error}; correct it") from error
    except RecursionError as error:
        raise UsageError("the JSON schema is nested too deeply; simplify it") from error
    for place, keyword in _not_enforced(parsed, "schema"):
        raise UsageError(
            f"the JSON schema has {keyword} at {place}, which the grammar would not enforce; leave it out"
        )
    try:
        return str(to_grammar(schema))
    except Exception as error:  # llama-cpp-python raises whatever it trips over, assertions included
        raise UsageError(
            f"the JSON schema cannot be used ({type(error).__name__}: {error}); leave out what llama.cpp's "
            "grammars lack, such as references to other documents"
        ) from error


def _not_enforced(schema: Any, place: str) -> Iterator[tuple[str, str]]:
    """Keywords that the translation ignores, with their places."""
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if key not in (*KEYWORDS, *ANNOTATIONS):
            yield place, key
        elif key == "format" and not FORMATS.fullmatch(str(value)):
            yield place, f"format {value!r}"
        inner = f"{place}.{key}"
        if key in ("properties", "$defs", "definitions") and isinstance(value, dict):
            for name, each in value.items():
                yield from _not_enforced(each, f"{inner}.{name}")
        elif key in ("oneOf", "anyOf", "allOf", "prefixItems", "items") and isinstance(value, list):
            for number, each in enumerate(value):
                yield from _not_enforced(each, f"{inner}[{number}]")
        elif key in ("items", "additionalProperties"):
            yield from _not_enforced(value, inner)


def grammar_sampler(vocab: Any, grammar: str) -> Any:
    """llama.cpp's sampler for a grammar, which the caller frees.

    A grammar that is new to this process is parsed in a child process first: llama.cpp's parser recurses as
    deeply as the grammar nests, and prints mistakes on stderr, which belongs to the whole process.

    Args:
        vocab: the ``llama_vocab`` pointer.
        grammar: the rules; the text is a ``root``.

    Raises:
        UsageError: they have a mistake, or llama.cpp cannot parse them.
    """
    if os.environ.get(VARIABLE) != "0":
        _try_grammar(grammar)
    log.clear()
    sampler = api().llama_sampler_init_grammar(vocab, grammar.encode("utf-8"), b"root")
    if not sampler:
        raise _mistake(log.reason("libllama gave no reason"))
    return sampler


@functools.lru_cache(maxsize=16)
def _try_grammar(grammar: str) -> None:
    """Let libllama parse a grammar in a child process."""
    if "\0" in grammar:
        raise _mistake(f"its character {grammar.index(chr(0)) + 1} is NUL, at which llama.cpp would stop")
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        _PROGRAM,
        str(cpu_library_file()),
        str(library_file("llama")),
    ]
    try:
        done = subprocess.run(
            command,
            input=grammar.encode("utf-8"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_MOST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UsageError(
            f"llama.cpp did not parse the grammar within {_MOST_SECONDS} s, because its rules refer to each "
            "other in too many ways; simplify it"
        ) from None
    except OSError as error:
        raise UsageError(
            f"the grammar cannot be tried in a separate process: {sys.executable or 'Python'} does not start "
            f"({error.strerror}); set {VARIABLE}=0 to skip that"
        ) from error
    printed = done.stderr.decode("utf-8", errors="replace")
    if done.returncode < 0:
        raise UsageError(
            f"the grammar ends llama.cpp ({signal.Signals(-done.returncode).name}), as a trial in a separate "
            "process shows; nest it less deeply, and let fewer rules refer to each other in a row"
        )
    if done.returncode > 0:
        found = re.search(r"error parsing grammar: (.*)", printed)
        last = (printed.strip() or "libllama gave no reason").splitlines()[-1]
        raise _mistake(found[1] if found else last)


def _mistake(reason: str) -> UsageError:
    return UsageError(f"the grammar has a mistake: {reason}; correct it (GBNF, with a rule named root)")
