"""Chat templates that take all memory or time, nest deeply, or are no templates."""

from __future__ import annotations

import random
from pathlib import Path

from bitexport.tokenizer.chat import render_template
from tests.support import template_bombs as bombs
from tests.torture.workers import GIB

SHARE = 3
SECONDS = 15
MEMORY = GIB
_BOMBS = (
    *bombs.MEMORY.values(),
    *bombs.TIME.values(),
    *(each for group in bombs.BROKEN.values() for each in group),
)
_ATOMS = (
    "messages",
    "'a'",
    "[0]",
    "1",
    "10 ** 9",
    "messages[0].content",
    "range(10 ** 6)",
    "none",
    "x",
    "true",
)
_BINARY = ("*", "+", "~", "**", "%", "//", "in", "and", "==", "<")
_FILTERS = (
    "length", "list", "join", "center(10 ** 9)", "tojson", "replace('a', 'b' * 10 ** 6)", "upper", "first",
    "batch(10 ** 8)", "wordwrap(1)", "format(1)", "sort", "sum", "int", "reverse", "urlize",
    "indent(10 ** 8)",
)  # fmt: skip
_VARIABLES = {"messages": [{"role": "user", "content": "hello"}], "add_generation_prompt": True}


def prepare(folder: Path) -> None:
    """Nothing is shared."""


def execute(chance: random.Random, prepared: Path, folder: Path) -> str:  # noqa: ARG001
    template = _published_bomb(chance) if chance.random() < 0.1 else _statement(chance, 4)
    (folder / "template.jinja").write_text(template, encoding="utf-8")
    try:
        render_template(template, _VARIABLES)
    except Exception as error:  # whatever the template raises; a limit that fails shows in this process
        return f"refused: {type(error).__name__}"
    return "worked"


def _published_bomb(chance: random.Random) -> str:
    """A bomb, whole or with something cut out."""
    bomb = chance.choice(_BOMBS)
    if chance.random() < 0.5 or len(bomb) > 10_000:
        return bomb
    at = chance.randrange(len(bomb))
    return bomb[:at] + bomb[at + chance.randrange(1, 9) :]


def _expression(chance: random.Random, depth: int) -> str:
    kind = chance.random()
    if depth == 0 or kind < 0.2:
        return chance.choice(_ATOMS)
    inner = _expression(chance, depth - 1)
    if kind < 0.5:
        return f"({inner} {chance.choice(_BINARY)} {_expression(chance, depth - 1)})"
    if kind < 0.8:
        return f"({inner} | {chance.choice(_FILTERS)})"
    if kind < 0.9:
        return "(" * chance.choice((1, 90, 400)) + inner
    return f"[{inner}, {inner}][0]"


def _statement(chance: random.Random, depth: int) -> str:
    kind = chance.random()
    if depth == 0 or kind < 0.4:
        return "{{ " + _expression(chance, 3) + " }}"
    inner = _statement(chance, depth - 1)
    if kind < 0.6:
        return "{% for x in " + _expression(chance, 2) + " %}" + inner + "{% endfor %}"
    if kind < 0.8:
        return "{% if " + _expression(chance, 2) + " %}" + inner + "{% endif %}"
    if kind < 0.9:
        return "{% set x = " + _expression(chance, 3) + " %}" + inner
    return "{% macro f(x) %}" + inner + "{{ f(x) }}{% endmacro %}{{ f(1) }}"
