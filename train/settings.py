"""Settings in one flat TOML file: every key typed, every unknown key an error.

A dataclass with annotations of int, float, bool, str and list[str] is all that a program has to write.
"""

from __future__ import annotations

import difflib
import json
import math
import sys
import typing
from collections.abc import Collection
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from bitexport.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Kind = TypeVar("Kind")


class Settings:
    """What a dataclass of settings inherits: its types are checked, and it goes back into TOML."""

    def __post_init__(self) -> None:
        """Raise UsageError for the first value of another type than annotated; integers become floats."""
        for name, kind in typing.get_type_hints(type(self)).items():
            value = getattr(self, name)
            if kind is float and type(value) is int:  # TOML's 1 is as good as 1.0
                object.__setattr__(self, name, float(value))
            elif kind == list[str]:
                strings = type(value) is list and all(type(item) is str for item in value)
                self.require(strings, name, "a list of strings")
            elif type(value) is not kind:
                found = f"config: {name} = {value!r} is a {type(value).__name__}"
                raise UsageError(f"{found}; expected a {kind.__name__}")
            else:
                self.require(kind is not float or math.isfinite(value), name, "a finite number")
        self.check()

    def check(self) -> None:
        """Raise UsageError where values do not fit each other; for the dataclass to say."""

    def require(self, holds: bool, name: str, expected: str) -> None:
        """Raise UsageError that names the key, its value and what was ``expected``, unless it holds."""
        if not holds:
            raise UsageError(f"config: {name} = {getattr(self, name)!r}; expected {expected}")

    def to_toml(self) -> str:
        """Every key with its value in force, so that a run can be repeated from this text alone."""
        # JSON writes strings, numbers, bools and lists as TOML does, but for DEL, which it leaves as it is.
        values = asdict(typing.cast(Any, self))
        items = ((name, json.dumps(value, ensure_ascii=False)) for name, value in values.items())
        return "".join(f"{name} = {value}\n" for name, value in items).replace("\x7f", "\\u007f")

    def require_same(self, kept: Path, free: Collection[str]) -> None:
        """Raise UsageError when the file ``kept`` of a run differs in another key than the ``free`` ones."""
        for name, value in vars(load_settings(type(self), kept)).items():
            if name not in free and value != getattr(self, name):
                raise UsageError(
                    f"{kept.parent} was begun with {name} = {value!r}, now it is {getattr(self, name)!r}; "
                    "resume with what it was, or start another run with --run-dir"
                )


def load_settings(kind: type[Kind], path: Path, **overrides: Any) -> Kind:
    """Read a TOML file as a dataclass; ``overrides`` that are not None win over it.

    Raises:
        UsageError: the file is missing or not TOML; a key is unknown or missing; what ``kind`` itself raises.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"config {path}: {error.strerror}; give the path of a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"config {path}: not TOML: {error}") from error
    known = {field.name: field for field in fields(typing.cast(Any, kind))}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            advice = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(sorted(known))}"
            raise UsageError(f"config {path}: unknown key {key}; {advice}")
    values.update({key: value for key, value in overrides.items() if value is not None})
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise UsageError(f"config {path}: missing {name}; add it to the file")
    return kind(**values)
