"""A position in a mapped GGUF file, from which its numbers, strings and arrays are read."""

from __future__ import annotations

import mmap
import os
import shlex
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from bitexport.errors import GGUFError
from bitexport.gguf.strings import string_starts
from bitexport.system.reading import open_regular

VALUE = gguf.GGUFValueType
SCALARS: Mapping[int, str] = {
    int(VALUE.UINT8): "<u1",
    int(VALUE.INT8): "<i1",
    int(VALUE.UINT16): "<u2",
    int(VALUE.INT16): "<i2",
    int(VALUE.UINT32): "<u4",
    int(VALUE.INT32): "<i4",
    int(VALUE.FLOAT32): "<f4",
    int(VALUE.BOOL): "<u1",
    int(VALUE.UINT64): "<u8",
    int(VALUE.INT64): "<i8",
    int(VALUE.FLOAT64): "<f8",
}


@dataclass(frozen=True, slots=True)
class Array:
    """A metadata array, which stays in the file until :meth:`GGUFFile.elements` reads it.

    Attributes:
        type: the type of its elements, such as ``"string"``.
        length: the number of elements.
        offset: the position of the first one in the file.
    """

    type: str
    length: int
    offset: int


def refuse_folder(path: Path) -> None:
    """Raise GGUFError, with the command that converts it, if a folder is given instead of a file."""
    if path.is_dir():
        name = f"{path.resolve().name or 'out'}.gguf"
        convert = f"convert it first: bitexport convert {shlex.quote(str(path))} {shlex.quote(name)}"
        advice = convert if (path / "config.json").is_file() else "give the path of a GGUF file"
        raise GGUFError(f"{path} is a folder, and a GGUF file is expected; {advice}")


class Cursor:
    """A position in a mapped file; every read is checked against the end of the file."""

    def __init__(self, path: Path, position: int) -> None:
        self.path = path
        self.position = position
        refuse_folder(path)
        try:
            with open_regular(path) as file:
                self.size = os.fstat(file.fileno()).st_size
                # empty files cannot be mapped
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise GGUFError(f"{path}: cannot be read ({reason}); check the path") from error

    def __enter__(self) -> Cursor:
        return self

    def __exit__(self, *_: object) -> None:
        if self._map is not None:
            self._map.close()

    def damaged(self, what: str, explanation: str = "") -> GGUFError:
        """The error to raise; ``explanation`` is another explanation than damage."""
        explanation = explanation or "; the file is damaged: convert or download it again"
        return GGUFError(f"{self.path.name}: {what}{explanation}")

    def skip(self, count: int) -> int:
        """Skip ``count`` bytes, which must exist, and return the position of the first one."""
        start = self.position
        if count > self.size - start:
            raise self.damaged(f"the header needs {count} bytes at {start}, but the file ends at {self.size}")
        self.position = start + count
        return start

    def take(self, count: int) -> bytes:
        start = self.skip(count)
        return self._map[start : start + count] if self._map is not None else b""

    def taken(self, start: int) -> bytes:
        """The bytes from ``start`` to here."""
        return self._map[start : self.position] if self._map is not None else b""

    def number(self, kind: str) -> int:
        """A number of kind ``<u4`` or ``<u8``."""
        return int.from_bytes(self.take(int(kind[2:])), "little")

    def count(self, what: str, min_bytes: int) -> int:
        """The number of items that follow, each of at least ``min_bytes`` bytes."""
        number = self.number("<u8")
        if number > (self.size - self.position) // min_bytes:
            raise self.damaged(f"it claims {number} {what}, more than a file of {self.size} bytes can hold")
        return number

    def string(self) -> str:
        (length,) = struct.unpack("<Q", self.take(8))
        return self.take(length).decode("utf-8", errors="replace")

    def strings(self, count: int) -> npt.NDArray[np.int64]:
        """Skip ``count`` strings; returns where each begins, and where the last one ends."""
        starts = string_starts(np.frombuffer(self._map or b"", np.uint8), self.position, count)
        self.position = int(starts[-1])
        if len(starts) <= count:
            self.skip(8 + self.number("<u8"))  # which goes beyond the end
        return starts

    def value(self, key: str) -> Any:
        kind = self.number("<u4")
        if kind == VALUE.STRING:
            return self.string()
        if kind == VALUE.ARRAY:
            return self._array(key)
        return self._scalar(kind, key)

    def _scalar(self, kind: int, key: str) -> Any:
        if kind not in SCALARS:
            raise self.damaged(f"metadata key '{key}' has type {kind}, expected one of GGUF's 13")
        number = np.frombuffer(self.take(np.dtype(SCALARS[kind]).itemsize), SCALARS[kind])[0]
        if kind == VALUE.FLOAT32:
            # the shortest decimal of this float32: 1e-05, not 9.999999747378752e-06
            return float(str(number))
        return bool(number) if kind == VALUE.BOOL else number.item()

    def _array(self, key: str) -> Array:
        kind = self.number("<u4")
        if kind == VALUE.STRING:
            length = self.count(f"strings in '{key}'", 8)
            return Array("string", length, int(self.strings(length)[0]))
        if kind not in SCALARS:
            raise self.damaged(
                f"metadata array '{key}' has elements of type {kind}, expected numbers or text"
            )
        width = np.dtype(SCALARS[kind]).itemsize
        length = self.count(f"elements in '{key}'", width)
        return Array(VALUE(kind).name.lower(), length, self.skip(length * width))

    def elements(self, array: Array, limit: int | None) -> list[Any]:
        length = array.length if limit is None else min(array.length, limit)
        if array.type == "string":
            return [self.string() for _ in range(length)]
        kind = SCALARS[int(VALUE[array.type.upper()])]
        found = np.frombuffer(self.take(length * np.dtype(kind).itemsize), kind)
        return [bool(value) for value in found] if array.type == "bool" else found.tolist()
