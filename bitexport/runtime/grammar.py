"""Grammars that a generated text follows: in llama.cpp's GBNF, or made from a JSON schema."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from typing import Any

from bitexport.errors import UsageError
from bitexport.runtime import log
from bitexport.runtime.library import bind
from bitexport.runtime.processes import lock_across_forks

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

_one_at_a_time = lock_across_forks()


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

    Args:
        vocab: the ``llama_vocab`` pointer.
        grammar: the rules; the text is a ``root``.

    Raises:
        UsageError: they have a mistake.
    """
    api = bind().llama_cpp
    with _one_at_a_time, tempfile.TemporaryFile() as caught:
        log.clear()
        # the parser prints the reason on stderr instead of logging it
        kept = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            sampler = api.llama_sampler_init_grammar(vocab, grammar.encode("utf-8"), b"root")
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        caught.seek(0)
        printed = caught.read().decode("utf-8", errors="replace")
    if sampler:
        return sampler
    found = re.search(r"error parsing grammar: (.*)", printed)
    reason = found[1] if found else log.reason("libllama gave no reason")
    raise UsageError(f"the grammar has a mistake: {reason}; correct it (GBNF, with a rule named root)")
