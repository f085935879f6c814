"""Settings in one flat TOML file: every key typed, every unknown key an error.

A program declares them as a dataclass with annotations of int, float, bool, str and list[str].
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
    """Base of a dataclass of settings: checks the types of its values, and writes itself as TOML."""

    def __post_init__(self) -> None:
        """Raise UsageError for the first value of a wrong type; an integer for a float becomes one."""
        for name, kind in typing.get_type_hints(type(self)).items():
            value = getattr(self, name)
            if kind is float and type(value) is int:  # TOML's 1 means 1.0 here
                object.__setattr__(self, name, float(value))
            else:
                self._check_type(name, value, kind)
        self.check()

    def _check_type(self, name: str, value: Any, kind: Any) -> None:
        if kind == list[str]:
            is_list_of_strings = type(value) is list and all(type(item) is str for item in value)
            self.require(is_list_of_strings, name, "a list of strings")
        elif type(value) is not kind:
            found = f"config: {name} = {value!r} has type {type(value).__name__}"
            raise UsageError(f"{found}; expected {kind.__name__}")
        elif kind is float:
            self.require(math.isfinite(value), name, "a finite number")

    def check(self) -> None:
        """Raise UsageError if values do not fit each other; for the dataclass to override."""

    def require(self, holds: bool, name: str, expected: str) -> None:
        """Raise UsageError with the key, its value and what was ``expected``, unless it ``holds``."""
        if not holds:
            raise UsageError(f"config: {name} = {getattr(self, name)!r}; expected {expected}")

    def to_toml(self) -> str:
        """Every key with its value, so that a run can be repeated from this text alone."""
        lines = []
        for name, value in asdict(typing.cast(Any, self)).items():
            # JSON writes strings, numbers, bools and lists as TOML does, except DEL, which TOML must escape.
            text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
            lines.append(f"{name} = {text}\n")
        return "".join(lines)

    def require_same(self, kept: Path, free: Collection[str]) -> None:
        """Raise UsageError if the file ``kept`` of a run differs in a key that is not ``free`` to change."""
        for name, value in vars(load_settings(type(self), kept)).items():
            if name not in free and value != getattr(self, name):
                raise UsageError(
                    f"{kept.parent} was started with {name} = {value!r}, now it is {getattr(self, name)!r}; "
                    "resume with the original value, or start another run with --run-dir"
                )


def load_settings(kind: type[Kind], path: Path, **overrides: Any) -> Kind:
    """Read a TOML file as a dataclass of class ``kind``; ``overrides`` that are not None replace its values.

    Raises:
        UsageError: the file is missing or not TOML; a key is unknown or missing; or what ``kind`` raises.
    """
    values = _read_toml(path)
    known = {field.name: field for field in fields(typing.cast(Any, kind))}
    for key in values:
        if key not in known:
            raise UsageError(f"config {path}: unknown key {key}; {_advice(key, known)}")
    values.update({key: value for key, value in overrides.items() if value is not None})
    for name, field in known.items():
        has_default = field.default is not MISSING or field.default_factory is not MISSING
        if name not in values and not has_default:
            raise UsageError(f"config {path}: missing {name}; add it to the file")
    return kind(**values)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"config {path}: {error.strerror}; give the path of a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"config {path}: not TOML: {error}") from error


def _advice(key: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return f"known keys: {', '.join(sorted(known))}"
