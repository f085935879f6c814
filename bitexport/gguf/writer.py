"""Writes a GGUF file: metadata, then one tensor after another. Only a complete file gets the output's name.

The file is written under a temporary name in the same folder, flushed to the disk, checked, and renamed. If
anything fails before that, the temporary file is removed. A symbolic link stays, and its target is replaced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import gguf
import numpy as np
import numpy.typing as npt

from bitexport.errors import OutputError
from bitexport.gguf.types import TensorType

ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT
VERSION = gguf.GGUF_VERSION
VALUE = gguf.GGUFValueType
FORMATS = {VALUE.BOOL: "<?", VALUE.UINT32: "<I", VALUE.INT32: "<i", VALUE.FLOAT32: "<f"}
#: Bytes of a name that are also in the name of its temporary file.
_LONGEST_START = 200


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to write: its GGUF name, its shape (outermost first) and its type."""

    name: str
    shape: tuple[int, ...]
    type: TensorType

    @property
    def nbytes(self) -> int:
        """The size of its data in bytes."""
        return self.type.nbytes(self.shape)


@dataclass(frozen=True, slots=True)
class RawValue:
    """A metadata value copied from another file: the number of its type and its bytes, written unchanged."""

    data: bytes


#: int is written as uint32, float as float32, bool and str as bool and string. A list is an array of the type
#: of its first element, where int is int32. An empty list is omitted.
MetadataValue = int | float | bool | str | Sequence[str] | Sequence[int] | Sequence[float] | RawValue


def write_gguf(
    path: Path,
    architecture: str,
    metadata: Mapping[str, MetadataValue],
    tensors: Sequence[TensorSpec],
    data: Callable[[TensorSpec], Iterable[npt.NDArray[Any]]],
    *,
    force: bool = False,
    check: Callable[[Path], None] | None = None,
) -> int:
    """Write a GGUF file and return its size in bytes.

    Args:
        path: the output.
        architecture: the value of ``general.architecture``.
        metadata: all other keys.
        tensors: the tensors, in the order of the file.
        data: returns a tensor's bytes in chunks; called once per tensor, in the order of ``tensors``.
        force: replace an existing file.
        check: called with the finished temporary file; if it raises, the output does not appear.

    Raises:
        OutputError: :func:`check_output` rejects the path, or the file cannot be written.
    """
    path = check_output(path, force)
    with _temporary(path) as temporary:
        with _reported(path):
            _write(temporary, architecture, metadata, tensors, data)
        if check is not None:
            check(temporary)
        with _reported(path):
            size = temporary.stat().st_size
            _rename(temporary, path, force)
    return size


def check_output(path: Path, force: bool) -> Path:
    """Reject early an output that could not be written at the end.

    Returns:
        The file to write: the target of ``path`` if it is a symbolic link, otherwise ``path`` itself.

    Raises:
        OutputError: ``path`` is a folder, a device or a pipe, its folder is missing, or it exists and
            ``force`` is not set.
    """
    try:
        target = path.resolve()
        if target.is_symlink():  # newer Pythons resolve a loop of links to a link
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, or a zero byte
        raise OutputError(f"{str(path)!r} cannot be resolved ({error}); expected a file name") from error
    with _reported(path):
        kind = target.stat().st_mode if target.exists() else None
        has_folder = target.parent.is_dir()
    if kind is not None and stat.S_ISDIR(kind):
        raise OutputError(f"{path} is a folder; expected a file name, such as {path / 'model.gguf'}")
    if not has_folder:
        raise OutputError(f"{path}: folder {target.parent} does not exist; create it first")
    if kind is not None and not stat.S_ISREG(kind):
        raise OutputError(
            f"{path} is not a regular file; expected a file name: the output is written under a temporary "
            "name and renamed, which is not possible for a device or a pipe (--dry-run writes nothing)"
        )
    if kind is not None and not force:
        raise OutputError(f"{path} already exists; use --force to replace it, or choose another name")
    return target


def _write(
    path: Path,
    architecture: str,
    metadata: Mapping[str, MetadataValue],
    tensors: Sequence[TensorSpec],
    data: Callable[[TensorSpec], Iterable[npt.NDArray[Any]]],
) -> None:
    with path.open("xb") as file:
        file.write(_header(architecture, metadata, tensors))
        _pad(file)
        _reserve(file, sum(spec.nbytes + -spec.nbytes % ALIGNMENT for spec in tensors))
        for spec in tensors:
            written = 0
            for chunk in data(spec):
                written += file.write(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data)
            if written != spec.nbytes:
                raise RuntimeError(f"tensor '{spec.name}': {written} bytes given, {spec.nbytes} expected")
            _pad(file)
        file.flush()
        os.fsync(file.fileno())


def _header(architecture: str, metadata: Mapping[str, MetadataValue], tensors: Sequence[TensorSpec]) -> bytes:
    """Everything before the padding and the data; see reader.py for the layout."""
    values = {"general.architecture": _value(architecture)}
    values.update((key, _value(value)) for key, value in metadata.items())
    values = {key: value for key, value in values.items() if value}
    parts = [struct.pack("<4sIQQ", gguf.GGUF_MAGIC.to_bytes(4, "little"), VERSION, len(tensors), len(values))]
    for key, value in values.items():
        parts += [_text(key), value]
    offset = 0
    for spec in tensors:
        dims = spec.shape[::-1]
        parts.append(_text(spec.name))
        parts.append(struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, spec.type.id, offset))
        offset += spec.nbytes + -spec.nbytes % ALIGNMENT
    return b"".join(parts)


def _value(value: MetadataValue) -> bytes:
    """A value, preceded by the number of its type; no bytes for an empty list."""
    if isinstance(value, RawValue):
        return value.data
    if isinstance(value, (bool, int, float, str)):
        kind = VALUE.UINT32 if type(value) is int else _kind(value)
        return struct.pack("<I", kind) + _element(value, kind)
    if not value:
        return b""
    kind = _kind(value[0])
    if any(type(element) is not type(value[0]) for element in value):
        raise ValueError(f"a list of several types: {value!r}")
    elements = b"".join(_element(element, kind) for element in value)
    return struct.pack("<IIQ", VALUE.ARRAY, kind, len(value)) + elements


def _kind(value: bool | int | float | str) -> gguf.GGUFValueType:
    kinds = {bool: VALUE.BOOL, int: VALUE.INT32, float: VALUE.FLOAT32, str: VALUE.STRING}
    return kinds[type(value)]


def _element(value: bool | int | float | str, kind: gguf.GGUFValueType) -> bytes:
    if isinstance(value, str):
        return _text(value)
    return struct.pack(FORMATS[kind], value)


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8")
    return struct.pack("<Q", len(encoded)) + encoded


def _pad(file: IO[bytes]) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))


def _reserve(file: IO[bytes], count: int) -> None:
    """Allocate disk space for all tensors, so that a full disk is an error before any work is done."""
    if not hasattr(os, "posix_fallocate") or count == 0:
        return
    file.flush()
    try:
        os.posix_fallocate(file.fileno(), file.tell(), count)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
            raise


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    # file systems limit names to 255 bytes, and the name itself may have as many
    start = os.fsdecode(os.fsencode(path.name)[:_LONGEST_START])
    temporary = path.with_name(f".{start}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turn errors of the operating system into :class:`OutputError`."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        hint = {
            errno.ENOSPC: "free some space or choose another disk",
            errno.EDQUOT: "free some of your quota or choose another disk",
            errno.EFBIG: "raise the limit on file sizes or choose another disk",
            errno.EACCES: "choose a folder that you may write to",
            errno.EROFS: "choose a folder that you may write to",
            errno.EEXIST: "use --force to replace it, or choose another name",
        }.get(error.errno or 0, "choose another output")
        raise OutputError(f"{path} cannot be written: {reason}; {hint}") from error


def _rename(temporary: Path, path: Path, force: bool) -> None:
    if force:
        temporary.replace(path)
    else:
        try:
            # unlike a rename, a link never replaces a file that another process wrote in the meantime
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:
            if path.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
            temporary.replace(path)
    # the file is complete; flushing the folder as well is not possible on every file system
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
