"""Write docs/config.md, the reference of a training configuration, from TrainConfig itself.

Usage: config_reference.py [--check]

``--check`` writes nothing and fails if docs/config.md is out of date. Types and defaults come from the class,
words from its comments: a comment next to a key explains it, a comment above keys begins a section.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import typing
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from bitexport.train.config import CHOICES, TrainConfig

PAGE = Path(__file__).resolve().parent.parent / "docs" / "config.md"
KINDS = {str: "string", int: "integer", float: "number", bool: "true or false", list[str]: "list of strings"}
INTRODUCTION = """\
# Configuration of training

<!-- made by scripts/config_reference.py from train/config.py: change the comments there instead -->

`bitexport train CONFIG.toml` reads one flat TOML file. This page lists all its keys;
[training.md](training.md) explains how to use them. Only `run_dir` has no default. An unknown key is an error
that names the closest known key; a value of the wrong type or out of range is an error that names the key and
what was expected.

A run prints all values when it starts and saves them as `config.toml` in its folder. That file is a
configuration, too: a run can be repeated from it.
"""


def page() -> str:
    """The text of docs/config.md."""
    fields_by_name = {field.name: field for field in fields(TrainConfig)}
    kinds = typing.get_type_hints(TrainConfig)
    blocks = [INTRODUCTION]
    documented = set()
    for heading, keys in sections(inspect.getsource(TrainConfig)):
        if heading:
            blocks.append(f"\n{heading}\n")
        blocks += ["| key | value | default | |", "| --- | --- | --- | --- |"]
        for name, comment in keys:
            choices = ", ".join(f"`{json.dumps(choice)}`" for choice in CHOICES.get(name, ()))
            value = choices or KINDS[kinds[name]]
            blocks.append(f"| `{name}` | {value} | {default(fields_by_name[name])} | {comment} |")
            documented.add(name)
    missing = fields_by_name.keys() - documented
    if missing:
        names = ", ".join(sorted(missing))
        sys.exit(f"config_reference.py: keys that it cannot read in train/config.py: {names}")
    return "\n".join(blocks) + "\n"


def sections(source: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Headings with their keys and the keys' comments, in the order of the source."""
    found: list[tuple[str, list[tuple[str, str]]]] = [("", [])]
    heading: list[str] = []
    for line in source.partition("def ")[0].splitlines():
        comment_line = re.fullmatch(r" {4}# (.*)", line)
        key_line = re.fullmatch(r" {4}(\w+): [^#]+?(?:  # (.*))?", line)
        if comment_line:
            heading.append(comment_line[1])
        elif key_line:
            if heading:
                found.append((" ".join(heading), []))
                heading = []
            keys = found[-1][1]
            keys.append((key_line[1], key_line[2] or ""))
    return found


def default(field: Field[Any]) -> str:
    """The default as TOML; nothing for a key that must be given."""
    value = field.default if field.default_factory is MISSING else field.default_factory()
    return "" if value is MISSING else f"`{json.dumps(value)}`"


def main() -> None:
    """Rewrite docs/config.md, or check that it is up to date."""
    text = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit("docs/config.md is out of date; run scripts/config_reference.py")


if __name__ == "__main__":
    main()
