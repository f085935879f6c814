"""Reads the tensors' positions in a file that ``torch.save`` wrote, without PyTorch and without running it.

Format: a zip archive of uncompressed members under one folder. ``data.pkl`` is a pickle of the object, here a
dict of tensors by name. In it, a tensor is a call of ``torch._utils._rebuild_tensor_v2`` on a storage, and a
storage is a persistent id ``("storage", type, key, device, elements)``, whose bytes are the member
``data/<key>``. So the bytes can be mapped where they are, as those of a safetensors file.

A pickle is a program. The unpickler here resolves only the names in :data:`_Unpickler.KNOWN`, all of them
inert functions and types of this module; any other name is an error before anything is called.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NoReturn

from bitexport.checkpoint.safetensors import (
    DTYPE_BYTES,
    MAX_DIMENSIONS,
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    TensorInfo,
)
from bitexport.errors import CheckpointError
from bitexport.system.reading import open_regular

#: safetensors' names of the types of storages.
STORAGES: Mapping[str, str] = MappingProxyType(
    {
        "DoubleStorage": "F64",
        "FloatStorage": "F32",
        "HalfStorage": "F16",
        "BFloat16Storage": "BF16",
        "ByteStorage": "U8",
        "CharStorage": "I8",
        "ShortStorage": "I16",
        "IntStorage": "I32",
        "LongStorage": "I64",
        "BoolStorage": "BOOL",
    }
)

#: Every tensor has a member, and there are some others.
MAX_MEMBERS = MAX_TENSORS + 100

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field

_SAVE_AGAIN = (
    "save it again as safetensors: model.save_pretrained(FOLDER), or safetensors.torch.save_file(state_dict, "
    '"model.safetensors")'
)


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: str


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: str
    key: str
    elements: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Dict(dict[Any, Any]):
    """An OrderedDict of the pickle; its attributes, such as a state dict's ``_metadata``, are dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


def _make_dict(*arguments: Any) -> _Dict:
    if arguments:
        raise pickle.UnpicklingError("an OrderedDict with arguments")
    return _Dict()


def _make_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> _Tensor:
    sizes = (offset, *shape, *stride)
    if not isinstance(storage, _Storage) or len(shape) != len(stride):
        raise pickle.UnpicklingError("a tensor without a storage")
    if len(shape) > MAX_DIMENSIONS or not all(type(size) is int and 0 <= size < 2**63 for size in sizes):
        raise pickle.UnpicklingError("a tensor whose shape is not a short list of sizes")
    return _Tensor(storage, offset, tuple(shape), tuple(stride))


def _make_parameter(tensor: Any, *_: Any) -> _Tensor:
    if not isinstance(tensor, _Tensor):
        raise pickle.UnpicklingError("a parameter that is not a tensor")
    return tensor


class _Unpickler(pickle._Unpickler):
    """The unpickler in Python: that in C has a table as long as the largest number in a file."""

    #: What a pickle may name, and what stands in for it.
    KNOWN: Mapping[tuple[str, str], Any] = MappingProxyType(
        {
            ("collections", "OrderedDict"): _make_dict,
            ("torch._utils", "_rebuild_tensor_v2"): _make_tensor,
            ("torch._utils", "_rebuild_parameter"): _make_parameter,
            **{("torch", name): _StorageType(dtype) for name, dtype in STORAGES.items()},
        }
    )

    def __init__(self, raw: bytes, file: str) -> None:
        super().__init__(io.BytesIO(raw))
        self._file = file

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name in the pickle."""
        try:
            return self.KNOWN[module, name]
        except KeyError:
            raise CheckpointError(
                f"{self._file}: the pickle uses {module}.{name}; expected a state dict with nothing but "
                f"tensors of common types, as other objects can run code: if you trust it, {_SAVE_AGAIN}"
            ) from None

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage of the pickle."""
        match pid:
            case ("storage", _StorageType(dtype), str(key), _, int(elements)) if elements >= 0:
                return _Storage(dtype, key, elements)
        raise pickle.UnpicklingError("a storage of an unknown kind")


def read_torch_file(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a file that ``torch.save`` wrote of a state dict, by name, in the order of the dict.

    Raises:
        CheckpointError: it is not such a file, holds something other than contiguous tensors by name, or a
            tensor is outside its storage.
    """
    try:
        with open_regular(path) as file:
            if file.read(4) != b"PK\x03\x04":
                raise CheckpointError(
                    f"{path.name}: not a zip archive, as torch.save writes since PyTorch 1.6; the file is "
                    "from an older version or damaged: load it with torch.load(weights_only=True) and "
                    f"{_SAVE_AGAIN}"
                )
            with zipfile.ZipFile(file) as archive:
                return _read_archive(path, archive)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise CheckpointError(
            f"{path.name}: a damaged zip archive ({error}); the file is truncated: download it again"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path.name}: cannot be read ({error.strerror})") from error


def _read_archive(path: Path, archive: zipfile.ZipFile) -> dict[str, TensorInfo]:
    entries = archive.infolist()
    members = {entry.filename: entry for entry in entries}
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1 or len(members) != len(entries) or len(entries) > MAX_MEMBERS:
        raise CheckpointError(
            f"{path.name}: a zip archive with {len(pickles)} members named data.pkl; expected one, as "
            f"torch.save writes: {_SAVE_AGAIN}"
        )
    root = pickles[0].removesuffix("data.pkl")
    described = _stored(path, members[pickles[0]])
    if described.file_size > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path.name}: data.pkl has {described.file_size} bytes; expected the names and shapes of "
            f"tensors: {_SAVE_AGAIN}"
        )
    order = members.get(f"{root}byteorder")
    if order is not None and archive.read(_stored(path, order))[:8] != b"little":
        raise CheckpointError(f"{path.name}: the values are not little-endian; {_SAVE_AGAIN}")
    tensors = _unpickle(path, archive.read(described))
    begins: dict[str, int] = {}
    found: dict[str, TensorInfo] = {}
    with open_regular(path) as file:
        for name, tensor in tensors.items():
            key = tensor.storage.key
            entry = members.get(f"{root}data/{key}")
            if entry is None:
                raise CheckpointError(
                    f"{path.name}: tensor '{name}' has no data ({root}data/{key}); download it again"
                )
            if key not in begins:
                begins[key] = _begin(path, file, _stored(path, entry))
            found[name] = _located(path, name, tensor, entry.file_size, begins[key])
    return found


def _unpickle(path: Path, raw: bytes) -> dict[str, _Tensor]:
    try:
        content = _Unpickler(raw, path.name).load()
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(
            f"{path.name}: its pickle is damaged or not a state dict ({error}); {_SAVE_AGAIN}"
        ) from error
    if not isinstance(content, dict):
        _reject(path, "the file", content)
    for name, value in content.items():
        if not isinstance(name, str) or not name.isprintable():
            raise CheckpointError(f"{path.name}: tensor name {name!r} is not printable text; {_SAVE_AGAIN}")
        if not isinstance(value, _Tensor):
            _reject(path, f"entry '{name}'", value)
    return dict(content)


def _reject(path: Path, what: str, value: Any) -> NoReturn:
    kind = "dict" if isinstance(value, dict) else type(value).__name__.removeprefix("_").lower()
    raise CheckpointError(
        f"{path.name}: {what} has type {kind}; expected tensors by name, as in model.state_dict(): "
        f"{_SAVE_AGAIN}"
    )


def _located(path: Path, name: str, tensor: _Tensor, available: int, begin: int) -> TensorInfo:
    """Where a tensor is in the file.

    Args:
        available: bytes of its storage.
        begin: the first byte of its storage.
    """
    expected = 1
    for size, step in zip(reversed(tensor.shape), reversed(tensor.stride), strict=True):
        if size > 1 and step != expected:
            raise CheckpointError(
                f"{path.name}: tensor '{name}' of shape {list(tensor.shape)} has strides "
                f"{list(tensor.stride)}, so it is a view of another tensor; expected a contiguous one: call "
                f".contiguous() on it and {_SAVE_AGAIN}"
            )
        expected *= size
    width = DTYPE_BYTES[tensor.storage.dtype]
    nbytes = math.prod(tensor.shape) * width
    first = tensor.offset * width
    if first + nbytes > available:
        raise CheckpointError(
            f"{path.name}: tensor '{name}' takes bytes {first} to {first + nbytes} of data of {available} "
            "bytes; the file is damaged: download it again"
        )
    return TensorInfo(name, tensor.storage.dtype, tensor.shape, path, begin + first, nbytes)


def _stored(path: Path, entry: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """``entry``, which must not be compressed or encrypted."""
    if (
        entry.compress_type != zipfile.ZIP_STORED
        or entry.compress_size != entry.file_size
        or entry.flag_bits & 1
    ):
        raise CheckpointError(
            f"{path.name}: {entry.filename} is compressed; expected it as torch.save writes it: {_SAVE_AGAIN}"
        )
    return entry


def _begin(path: Path, file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """The first byte of a member's data, which follows its local header."""
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
        raise CheckpointError(f"{path.name}: {entry.filename} has no header; download the file again")
    _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    begin = entry.header_offset + _LOCAL_HEADER.size + int(name_length) + int(extra_length)
    if begin + entry.file_size > os.fstat(file.fileno()).st_size:
        raise CheckpointError(f"{path.name}: {entry.filename} is truncated; download the file again")
    return begin
