"""Reads the header of a GGUF file: its metadata, and its tensors' types, shapes and positions.

The ``gguf`` package's reader fails on type 36 and trusts the counts in the file. This one allocates nothing
for a count before it knows that the file has the bytes for it. A model that is split into several files is
read as one.

Layout, little-endian: ``GGUF``, version (2 or 3), numbers of tensors and of metadata keys; the keys, each a
name, a type and a value; the tensors, each a name, its dimensions innermost first, a type and an offset;
padding; the data.
"""

from __future__ import annotations

import time
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
from bitexport.gguf.cursor import Array as Array
from bitexport.gguf.cursor import Cursor
from bitexport.gguf.cursor import refuse_folder as refuse_folder
from bitexport.gguf.foreign_types import Room
from bitexport.gguf.strings import Texts
from bitexport.gguf.types import I2_S_ID, TensorType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMS = 4

#: Longer than any key or name of a tensor; ggml's names have up to 63 bytes, some projects' up to 127.
MAX_NAME = 1024

#: The smallest size of a tensor's or a key's entry, which bounds how many of them a file can have.
MIN_TENSOR_BYTES = 8 + 4 + 4 + 8
MIN_KEY_BYTES = 8 + 4 + 1


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
        with Cursor(self.path, array.offset) as cursor:
            return cursor.elements(array, limit)

    def texts(self, key: str) -> Texts:
        """The bytes of the elements of an array of strings."""
        array = self.metadata[key]
        with Cursor(self.path, array.offset) as cursor:
            starts = cursor.strings(array.length)
            return Texts(cursor.taken(array.offset), starts - array.offset)

    def raw(self, key: str) -> bytes:
        """The bytes of a key's type and value in the file."""
        start, end = self.places[key]
        with Cursor(self.path, start) as cursor:
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

    A header that was read before is returned again if no part has changed since.

    Raises:
        GGUFError: the file is not GGUF, is damaged, or has a tensor whose position or size does not match its
            type and shape; or a part of a split model is missing or belongs elsewhere.
    """
    path = Path(path)
    known = _known.get(path)
    if known is not None and known[0] == _identity(known[1].parts):
        return known[1]
    begin = time.time_ns()
    file = _read(path)
    identity = _identity(file.parts)
    # within the same tick of the clock, a file may change and keep its times
    if identity and all(changed < begin - _TICK for *_, changed in identity):
        while len(_known) >= _MOST_KNOWN:
            _known.pop(next(iter(_known)), None)
        _known[path] = identity, file
    return file


#: More than the resolution of any file system's times, in nanoseconds.
_TICK = 3_000_000_000

#: Headers that are kept, with the identities of their parts.
_MOST_KNOWN = 4
_known: dict[Path, tuple[list[tuple[int, ...]], GGUFFile]] = {}


def _identity(parts: Sequence[Path]) -> list[tuple[int, ...]]:
    """What changes whenever a file does; empty if one is missing. The last number is its newest time."""
    try:
        found = [part.stat() for part in parts]
    except OSError:
        return []
    return [
        (each.st_dev, each.st_ino, each.st_size, each.st_mtime_ns, max(each.st_ctime_ns, each.st_mtime_ns))
        for each in found
    ]


def _read(path: Path) -> GGUFFile:
    first = _read_part(path)
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
    with Cursor(file, 0) as cursor:
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


def _metadata(cursor: Cursor, key_count: int) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    found: dict[str, Any] = {}
    places: dict[str, tuple[int, int]] = {}
    for _ in range(key_count):
        key = _name(cursor, "metadata key")
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
    cursor: Cursor, tensor_count: int, alignment: int, metadata: Mapping[str, Any]
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


def _entry(cursor: Cursor) -> _Entry:
    name = _name(cursor, "tensor")
    dims = cursor.number("<u4")
    if dims > MAX_DIMS:
        raise cursor.damaged(f"tensor '{name}' has {dims} dimensions, expected at most {MAX_DIMS}")
    shape = tuple(cursor.number("<u8") for _ in range(dims))[::-1]
    return _Entry(name, shape, cursor.number("<u4"), cursor.number("<u8"))


def _name(cursor: Cursor, what: str) -> str:
    """A name, which messages will repeat."""
    name = cursor.string()
    if len(name) > MAX_NAME:
        raise cursor.damaged(f"a {what} has a name of {len(name)} characters, expected at most {MAX_NAME}")
    if not name.isprintable():
        raise cursor.damaged(f"a {what} has the name {name[:100]!r}, expected printable text")
    return name


def _rooms(entries: Sequence[_Entry], data_bytes: int) -> list[Room]:
    """The place of each tensor, up to the next one, or to the end of ``data_bytes`` bytes of data."""
    ends = [entry.offset for entry in entries[1:]] + [data_bytes]
    return [
        Room(entry.shape, end - entry.offset, last=index == len(entries) - 1)
        for index, (entry, end) in enumerate(zip(entries, ends, strict=bool(entries)))
    ]


def _types(
    cursor: Cursor,
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
    cursor: Cursor, found: list[GGUFTensor], room: Room, entry: _Entry, expected: int, alignment: int
) -> GGUFError:
    if not found:
        return cursor.damaged(f"tensor '{entry.name}' starts at {entry.offset}, expected {expected}")
    before = found[-1]
    return cursor.damaged(
        f"tensor '{before.name}' of type {before.type.id} ({before.type.name}) and shape "
        f"{list(before.shape)} has room for {room.nbytes} bytes, expected {before.nbytes} (padded)",
        foreign_layouts.other_layout(before.type.id, room, alignment),
    )
