"""Write docs/config.md, every key of a training configuration, from TrainConfig itself.

Usage: config_reference.py [--check]

``--check`` writes nothing and fails where docs/config.md is out of date. Types and defaults come from the
class, words from its comments: one beside a key explains it, one above keys opens a section.
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

`bitexport train CONFIG.toml` reads one flat TOML file. These are all its keys. An unknown key is an error
that names the nearest known one; so is a value of the wrong type or out of range. Only `run_dir` has no
default. A run prints every value in force when it starts and keeps them in `config.toml` in its folder,
which is a configuration itself. [training.md](training.md) says what they are for.
"""


def page() -> str:
    """The whole page."""
    known = {field.name: field for field in fields(TrainConfig)}
    kinds = typing.get_type_hints(TrainConfig)
    text, seen = [INTRODUCTION], []
    for heading, keys in sections(inspect.getsource(TrainConfig)):
        text += [f"\n{heading}\n"] if heading else []
        text += ["| key | value | default | |", "| --- | --- | --- | --- |"]
        for name, comment in keys:
            choices = ", ".join(f"`{json.dumps(choice)}`" for choice in CHOICES.get(name, ()))
            cells = (
                f"`{name}`",
                choices or KINDS[kinds[name]],
                default(known[name]),
                explanation(name, comment),
            )
            text.append(f"| {' | '.join(cells)} |")
            seen.append(name)
    if missing := known.keys() - set(seen):
        sys.exit(
            f"config_reference.py: keys that it cannot read in train/config.py: {', '.join(sorted(missing))}"
        )
    return "\n".join(text) + "\n"


def sections(source: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Headings with their keys and the keys' comments, in order."""
    found: list[tuple[str, list[tuple[str, str]]]] = [("", [])]
    heading: list[str] = []
    for line in source.partition("def ")[0].splitlines():
        if comment := re.fullmatch(r" {4}# (.*)", line):
            heading.append(comment[1])
        elif key := re.fullmatch(r" {4}(\w+): [^#]+?(?:  # (.*))?", line):
            if heading:
                found.append((" ".join(heading), []))
                heading = []
            found[-1][1].append((key[1], key[2] or ""))
    return found


def default(field: Field[Any]) -> str:
    """As TOML; nothing for a key that must be given."""
    made = field.default if field.default_factory is MISSING else field.default_factory()
    return "" if made is MISSING else f"`{json.dumps(made)}`"


def explanation(name: str, comment: str) -> str:
    """The comment without "or this, that" in front: the choices have a column of their own."""
    choice = "|".join(map(re.escape, CHOICES.get(name, ())))
    return re.sub(rf"^or (?:{choice})(?:, (?:{choice}))*(?:: |$)", "", comment) if choice else comment


def main() -> None:
    """Rewrite docs/config.md, or compare."""
    after = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(after, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != after:
        sys.exit("docs/config.md is out of date; run scripts/config_reference.py")


if __name__ == "__main__":
    main()
