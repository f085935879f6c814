"""The numbers of a model in its metadata, and the errors about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bitexport.errors import GGUFError
from bitexport.gguf.reader import Array, GGUFFile


def damaged(file: GGUFFile, what: str) -> GGUFError:
    """The error for a value that no converter writes; ``what`` names it and says what was expected."""
    return GGUFError(f"{file.path.name}: {what}: the file is damaged, convert or download it again")


def shown(value: object) -> str:
    """A metadata value in a message."""
    if value is None:
        return "missing"
    return f"an array of {value.length} {value.type}" if isinstance(value, Array) else repr(value)


class Numbers:
    """The hyper-parameters of a file's architecture, by their keys without its name."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        self.architecture = file.metadata.get("general.architecture")
        self._prefix = f"{self.architecture}."

    def get(self, key: str) -> Any:
        """The number under a key; None if it is missing or not a number."""
        value = self._file.metadata.get(self._prefix + key)
        return value if _is_number(value) else None

    def check(self, key: str, valid: Callable[[Any], bool], expected: str) -> None:
        """Check a number, if there is one.

        Raises:
            GGUFError: it is not a number, or not a valid one.
        """
        value = self._file.metadata.get(self._prefix + key)
        if value is None:
            return
        if not _is_number(value) or not valid(value):
            raise self.error(key, value, expected)

    def check_integer(self, key: str, low: int, high: int) -> None:
        """Check that a number, if there is one, is a whole one from ``low`` to ``high``."""
        self.check(key, lambda value: isinstance(value, int) and low <= value <= high, f"{low} to {high}")

    def per_layer(self, key: str) -> list[int]:
        """The numbers under a key that has one for all layers, or one for each; empty if it is missing.

        Raises:
            GGUFError: it is neither.
        """
        value = self._file.metadata.get(self._prefix + key)
        if value is None:
            return []
        found = self._file.elements(self._prefix + key) if isinstance(value, Array) else [value]
        if not all(isinstance(number, int) and not isinstance(number, bool) for number in found):
            raise self.error(key, value, "a whole number, or one for each layer")
        return found

    def error(self, key: str, value: object, expected: str) -> GGUFError:
        return damaged(self._file, f"{self._prefix}{key} is {shown(value)}; expected {expected}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
