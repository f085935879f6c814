"""Reads the header of a GGUF file: its metadata, and its tensors' types, shapes and positions.

The ``gguf`` package's reader fails on type 36 and trusts the counts in the file. This one allocates nothing
for a count before it knows that the file has the bytes for it. A model that is split into several files is
read as one.

Layout, little-endian: ``GGUF``, version (2 or 3), numbers of tensors and of metadata keys; the keys, each a
name, a type and a value; the tensors, each a name, its dimensions innermost first, a type and an offset;
padding; the data.
"""

from __future__ import annotations

import mmap
import os
import shlex
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from bitexport.checkpoint.folders import PARTS
from bitexport.errors import GGUFError
from bitexport.gguf import foreign_layouts, foreign_types, splits
from bitexport.gguf.foreign_types import Room
from bitexport.gguf.strings import string_starts
from bitexport.gguf.types import I2_S_ID, TensorType
from bitexport.system.reading import open_regular

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMS = 4

#: The smallest size of a tensor's or a key's entry, which bounds how many of them a file can have.
MIN_TENSOR_BYTES = 8 + 4 + 4 + 8
MIN_KEY_BYTES = 8 + 4 + 1

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


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor: ``shape`` is outermost first, and its ``nbytes`` bytes start at ``offset`` in ``path``."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    path: Path


@dataclass(frozen=True)
class GGUFFile:
    """The validated header of a GGUF file, or of a model that is split into several.

    Attributes:
        path: the file; the first one of a split model.
        version: the version of the format.
        metadata: the values by key, in the order of the file; arrays stay in the file, see :class:`Array`.
        tensors: the tensors, in the order of the file.
        places: where the bytes of each key's type and value begin and end in the file.
        parts: the files: ``path``, and the others of a split model.
    """

    path: Path
    version: int
    metadata: Mapping[str, Any]
    tensors: tuple[GGUFTensor, ...]
    places: Mapping[str, tuple[int, int]]
    parts: tuple[Path, ...]

    def elements(self, key: str, limit: int | None = None) -> list[Any]:
        """The first ``limit`` elements of an array; all of them if ``limit`` is None.

        Raises:
            GGUFError: ``key`` is missing or not an array.
        """
        array = self.metadata.get(key)
        if not isinstance(array, Array):
            raise GGUFError(
                f"{self.path.name}: {key} is missing or not an array; the file is incomplete: convert again"
            )
        with _Cursor(self.path, array.offset) as cursor:
            return cursor.elements(array, limit)

    def texts(self, key: str) -> list[bytes]:
        """The bytes of each element of an array of strings."""
        array = self.metadata[key]
        with _Cursor(self.path, array.offset) as cursor:
            starts = cursor.strings(array.length) - array.offset
            raw = cursor.taken(array.offset)
        ends = starts[1:].tolist()
        return [raw[begin:end] for begin, end in zip((starts[:-1] + 8).tolist(), ends, strict=True)]

    def raw(self, key: str) -> bytes:
        """The bytes of a key's type and value in the file."""
        start, end = self.places[key]
        with _Cursor(self.path, start) as cursor:
            return cursor.take(end - start)

    def data(self, tensor: GGUFTensor) -> npt.NDArray[np.uint8]:
        """The bytes of a tensor, memory-mapped: uint8, flat."""
        return np.memmap(tensor.path, dtype=np.uint8, mode="r", offset=tensor.offset, shape=(tensor.nbytes,))


def is_gguf_path(path: str | Path) -> bool:
    """Whether a path that may also be a checkpoint folder, or a file of one, is to be read as a GGUF file."""
    file = Path(path)
    if file.suffix == ".gguf":
        return not file.is_dir()
    return file.is_file() and file.suffix not in PARTS


def read_gguf(path: str | Path) -> GGUFFile:
    """Read and validate the header of a file, and those of all parts of a split model.

    Raises:
        GGUFError: the file is not GGUF, is damaged, or has a tensor whose position or size does not match its
            type and shape; or a part of a split model is missing or belongs elsewhere.
    """
    first = _read_part(Path(path))
    parts = splits.part_paths(first.path, first.metadata)
    tensors = list(first.tensors)
    for number, part in enumerate(parts[1:], start=2):
        file = _read_part(part, first.metadata)
        splits.check_part(part, file.metadata, number, len(parts))
        tensors += file.tensors
    if len(parts) > 1:
        splits.check_tensors(first.path, first.metadata, [tensor.name for tensor in tensors])
    return replace(first, tensors=tuple(tensors), parts=tuple(parts))


def _read_part(file: Path, model: Mapping[str, Any] | None = None) -> GGUFFile:
    """Read one file; ``model`` is the metadata of a split model's first part, if it is another."""
    with _Cursor(file, 0) as cursor:
        if cursor.take(4) != MAGIC:
            raise GGUFError(f"{file.name}: not a GGUF file (it does not start with 'GGUF'); check the path")
        version = cursor.number("<u4")
        if version not in VERSIONS:
            raise GGUFError(f"{file.name}: GGUF version {version}; expected 2 or 3, little-endian")
        tensor_count = cursor.count("tensors", MIN_TENSOR_BYTES)
        key_count = cursor.count("metadata keys", MIN_KEY_BYTES)
        metadata, places = _metadata(cursor, key_count)
        alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise cursor.damaged(f"general.alignment is {alignment!r}, expected a power of two")
        tensors = _tensors(cursor, tensor_count, alignment, model or metadata)
    return GGUFFile(file, version, metadata, tensors, places, (file,))


def _metadata(cursor: _Cursor, key_count: int) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    found: dict[str, Any] = {}
    places: dict[str, tuple[int, int]] = {}
    for _ in range(key_count):
        key = cursor.string()
        if key in found:
            raise cursor.damaged(f"metadata key '{key}' appears twice")
        start = cursor.position
        found[key] = cursor.value(key)
        places[key] = (start, cursor.position)
    return found, places


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor's entry in the header, not yet checked; ``offset`` counts from the start of the data."""

    name: str
    shape: tuple[int, ...]
    number: int
    offset: int


def _tensors(
    cursor: _Cursor, tensor_count: int, alignment: int, metadata: Mapping[str, Any]
) -> tuple[GGUFTensor, ...]:
    entries: list[_Entry] = []
    names: set[str] = set()
    for _ in range(tensor_count):
        entry = _entry(cursor)
        if entry.name in names:
            raise cursor.damaged(f"tensor '{entry.name}' appears twice")
        names.add(entry.name)
        entries.append(entry)
    start = cursor.position + -cursor.position % alignment
    rooms = _rooms(entries, cursor.size - start)
    kinds = _types(cursor, entries, rooms, alignment, metadata)
    found: list[GGUFTensor] = []
    expected = 0
    for index, (entry, room) in enumerate(zip(entries, rooms, strict=True)):
        kind = kinds[entry.number]
        nbytes = kind.nbytes(entry.shape)
        if entry.offset != expected:
            raise _wrong_position(cursor, found, rooms[max(index - 1, 0)], entry, expected, alignment)
        if start + entry.offset + nbytes > cursor.size:
            raise cursor.damaged(
                f"tensor '{entry.name}' ({kind.name}, {nbytes} bytes) ends at byte "
                f"{start + entry.offset + nbytes}, the file at {cursor.size}",
                foreign_layouts.other_layout(kind.id, room, alignment),
            )
        found.append(GGUFTensor(entry.name, kind, entry.shape, start + entry.offset, nbytes, cursor.path))
        expected = entry.offset + nbytes + -nbytes % alignment
    if found and found[-1].type.id == I2_S_ID and cursor.size > start + expected:
        raise cursor.damaged(
            f"tensor '{found[-1].name}' of type 36 ({found[-1].type.name}) is followed by bytes that do not "
            f"belong to it: shape {list(found[-1].shape)} takes {found[-1].nbytes} bytes",
            foreign_layouts.other_layout(I2_S_ID, rooms[-1], alignment),
        )
    return tuple(found)


def _entry(cursor: _Cursor) -> _Entry:
    name = cursor.string()
    dims = cursor.number("<u4")
    if dims > MAX_DIMS:
        raise cursor.damaged(f"tensor '{name}' has {dims} dimensions, expected at most {MAX_DIMS}")
    shape = tuple(cursor.number("<u8") for _ in range(dims))[::-1]
    return _Entry(name, shape, cursor.number("<u4"), cursor.number("<u8"))


def _rooms(entries: Sequence[_Entry], data_bytes: int) -> list[Room]:
    """The place of each tensor, up to the next one, or to the end of ``data_bytes`` bytes of data."""
    ends = [entry.offset for entry in entries[1:]] + [data_bytes]
    return [
        Room(entry.shape, end - entry.offset, last=index == len(entries) - 1)
        for index, (entry, end) in enumerate(zip(entries, ends, strict=bool(entries)))
    ]


def _types(
    cursor: _Cursor,
    entries: Sequence[_Entry],
    rooms: Sequence[Room],
    alignment: int,
    metadata: Mapping[str, Any],
) -> dict[int, TensorType]:
    """The type behind each number, after a check that every tensor can have it."""
    places: dict[int, list[Room]] = {}
    for entry, room in zip(entries, rooms, strict=True):
        places.setdefault(entry.number, []).append(room)
    found: dict[int, TensorType] = {}
    for entry, room in zip(entries, rooms, strict=True):
        number = entry.number
        if number not in found:
            kind = foreign_types.storage_of(number, places[number], alignment, metadata)
            unknown = foreign_types.unknown_layout(number, metadata)
            if kind is None or unknown:
                unknown = unknown or foreign_types.unknown_type(number, room, alignment)
                raise GGUFError(f"{cursor.path.name}: tensor '{entry.name}' has type {number}{unknown}")
            found[number] = kind
        kind = found[number]
        if not all(entry.shape):
            raise cursor.damaged(
                f"tensor '{entry.name}' has shape {list(entry.shape)}; expected no dimension of 0"
            )
        if number == I2_S_ID and len(entry.shape) not in (2, 3):
            raise cursor.damaged(
                f"tensor '{entry.name}' of type {number} ({kind.name}) has shape {list(entry.shape)}; "
                "expected two or three dimensions",
                foreign_layouts.other_layout(number, room, alignment),
            )
        if any(size >= 2**63 for size in entry.shape) or not kind.fits(entry.shape):
            raise cursor.damaged(
                f"tensor '{entry.name}' of type {number} ({kind.name}) has shape {list(entry.shape)}, not a "
                f"multiple of its block of {kind.block}",
                foreign_layouts.small_blocks(number, entry.shape),
            )
    return found


def _wrong_position(
    cursor: _Cursor, found: list[GGUFTensor], room: Room, entry: _Entry, expected: int, alignment: int
) -> GGUFError:
    if not found:
        return cursor.damaged(f"tensor '{entry.name}' starts at {entry.offset}, expected {expected}")
    before = found[-1]
    return cursor.damaged(
        f"tensor '{before.name}' of type {before.type.id} ({before.type.name}) and shape "
        f"{list(before.shape)} has room for {room.nbytes} bytes, expected {before.nbytes} (padded)",
        foreign_layouts.other_layout(before.type.id, room, alignment),
    )


def refuse_folder(path: Path) -> None:
    """Raise GGUFError, with the command that converts it, if a folder is given instead of a file."""
    if path.is_dir():
        name = f"{path.resolve().name or 'out'}.gguf"
        convert = f"convert it first: bitexport convert {shlex.quote(str(path))} {shlex.quote(name)}"
        advice = convert if (path / "config.json").is_file() else "give the path of a GGUF file"
        raise GGUFError(f"{path} is a folder, and a GGUF file is expected; {advice}")


class _Cursor:
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

    def __enter__(self) -> _Cursor:
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
