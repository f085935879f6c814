"""Compiles a chat template without computing any part of it, to find out whether it can be used."""

from __future__ import annotations

import functools
import threading

from jinja2 import nodes
from jinja2.exceptions import TemplateSyntaxError

from bitexport.errors import BitexportError
from bitexport.tokenizer.chat.environment import ChatEnvironment

#: The keys of a file's chat templates: that of the default one, and the beginning of those of named ones.
DEFAULT_KEY = "tokenizer.chat_template"
NAMED_PREFIX = f"{DEFAULT_KEY}."

#: Published templates have up to 20,000 characters.
MAX_CHARACTERS = 128 * 1024

#: How many parts may be inside one another. Published templates have up to 30; jinja2 and Python's compiler
#: recurse, and end in exceptions of many kinds at some hundreds.
MAX_DEPTH = 100

#: Published templates have up to 1,300 parts. 10,000 take about a second to compile.
MAX_PARTS = 10_000


class TemplateError(BitexportError):
    """A chat template cannot be used; the message is a clause without a subject."""


def template_of_key(key: str) -> bool:
    """Whether a key of a GGUF file holds a chat template."""
    return key == DEFAULT_KEY or key.startswith(NAMED_PREFIX)


def check_template(template: object) -> None:
    """Compile a chat template. Nothing in it is computed, so that time and memory follow from its size.

    Raises:
        TemplateError: it is too long, nested too deeply, or damaged.
    """
    if not isinstance(template, str):
        raise TemplateError(f"is of type {type(template).__name__}; expected text")
    problem = _problem(template)
    if problem:
        raise TemplateError(problem)


@functools.lru_cache(maxsize=16)
def _problem(template: str) -> str:
    if len(template) > MAX_CHARACTERS:
        return f"has {len(template)} characters; expected at most {MAX_CHARACTERS}"
    found: list[str] = []
    # a thread begins with an empty stack: the result does not depend on how deep the caller is
    thread = threading.Thread(target=lambda: found.append(_compile(template)), daemon=True)
    thread.start()
    thread.join()
    return found[0] if found else "cannot be compiled"


def _compile(template: str) -> str:
    """What is wrong with a template; empty if nothing is."""
    too_deep = f"is nested more than {MAX_DEPTH} levels deep"
    environment = ChatEnvironment()
    try:
        tree = environment.parse(template)
        depth, parts = _extent(tree)
        if depth > MAX_DEPTH:
            return too_deep
        if parts > MAX_PARTS:
            return f"has {parts} parts; expected at most {MAX_PARTS}"
        environment.compile(tree)
    except RecursionError:
        return too_deep
    except TemplateSyntaxError as error:
        return f"is damaged ({error.message}, line {error.lineno})"
    except Exception as error:  # of Python's compiler, which reads what jinja2 has made of it
        return f"is damaged ({type(error).__name__}: {error})"
    return ""


def _extent(tree: nodes.Node) -> tuple[int, int]:
    """How deep the parts of a template are nested, and how many there are."""
    deepest = parts = 0
    waiting = [(tree, 1)]
    while waiting:
        node, depth = waiting.pop()
        deepest = max(deepest, depth)
        parts += 1
        waiting.extend((child, depth + 1) for child in node.iter_child_nodes())
    return deepest, parts
