"""A griffe extension: what our docstrings have and mkdocstrings' Markdown has not, rewritten.

That is reStructuredText's roles and ``::``, and parameters that share a line (``width, height: pixels``).
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`~?\.?([^`]+)`")
_LITERAL_BLOCK = re.compile(r"::\n\n(?= {4})")
_SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)", re.MULTILINE)


def as_markdown(text: str) -> str:
    """A docstring with roles as code, blocks after a single colon, and an entry for each parameter."""
    text = _LITERAL_BLOCK.sub(":\n\n", _ROLE.sub(r"`\1`", text))
    return _SHARED.sub(_an_entry_each, text)


def _an_entry_each(found: re.Match[str]) -> str:
    return "\n".join(f"{found[1]}{name}: {found[3]}" for name in found[2].split(", "))


class Markdown(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:  # noqa: ARG002
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
