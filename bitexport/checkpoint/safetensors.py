"""Reads and validates the header of a safetensors file, so that its data can be mapped without more checks.

The ``safetensors`` package returns NumPy arrays, and NumPy has no bfloat16. So the header is read here, and
:mod:`bitexport.checkpoint.reader` maps the data.

Layout: the length of the header in 8 little-endian bytes, the header as JSON, then the tensors' bytes. The
header maps each name to ``{"dtype", "shape", "data_offsets": [begin, end]}``, with offsets counted from the
end of the header.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bitexport.errors import CheckpointError
from bitexport.system.reading import open_regular

#: The limit that the safetensors format sets on the size of a header.
MAX_HEADER_BYTES = 100_000_000

#: A model with 384 experts in each of 61 layers has 210,000 tensors if it is quantized.
MAX_TENSORS = 250_000

#: A list, and so a shape, may not be longer than this; PyTorch's tensors have up to 64 dimensions.
MAX_DIMENSIONS = 64

#: Bytes per element of every dtype of the format that takes whole bytes.
DTYPE_BYTES: Mapping[str, int] = MappingProxyType(
    {
        "BOOL": 1,
        "U8": 1,
        "I8": 1,
        "F8_E4M3": 1,
        "F8_E5M2": 1,
        "F8_E8M0": 1,
        "I16": 2,
        "U16": 2,
        "F16": 2,
        "BF16": 2,
        "I32": 4,
        "U32": 4,
        "F32": 4,
        "F64": 8,
        "I64": 8,
        "U64": 8,
        "C64": 8,
    }
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """The location and type of one tensor.

    Attributes:
        name: its name in the file.
        dtype: the safetensors name of its type, such as ``"BF16"``.
        shape: its dimensions, outermost first.
        shard: the file that contains it.
        offset: the first byte of its data, counted from the start of that file.
        nbytes: the length of its data.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: Path
    offset: int
    nbytes: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, by name, in the order of their data.

    Raises:
        CheckpointError: the file is truncated, its header is not valid, a dtype is unknown, or a tensor's
            bytes are outside the file, overlap another tensor's, leave a gap, or do not match its shape.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            if len(prefix) < 8:
                raise CheckpointError(
                    f"{path.name}: the file has {size} bytes, too few for a safetensors header; download it "
                    "again"
                )
            (length,) = struct.unpack("<Q", prefix)
            if length > MAX_HEADER_BYTES or length > size - 8:
                raise CheckpointError(
                    f"{path.name}: the header claims {length} bytes in a file of {size}; "
                    "the file is truncated or not safetensors: download it again"
                )
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path.name}: cannot be read ({error.strerror})") from error
    _check_extent(path, raw)
    entries = _parse(path, raw)
    tensors = [_tensor(path, name, entry, 8 + length) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    _check_layout(path, tensors, 8 + length, size)
    return {tensor.name: tensor for tensor in tensors}


def json_values(raw: bytes) -> int:
    """About how many values a JSON document has, without parsing it."""
    return raw.count(b",") + raw.count(b"[") + raw.count(b"{")


def _check_extent(path: Path, raw: bytes) -> None:
    """Check that a header does not have more entries and numbers than any model has, before it is parsed."""
    entries = raw.count(b"{") - 1
    if entries > MAX_TENSORS + 1 or json_values(raw) > 20 * MAX_TENSORS:
        raise CheckpointError(
            f"{path.name}: the header has {entries} entries; expected at most {MAX_TENSORS} tensors: the "
            "file is damaged, download it again"
        )


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise CheckpointError(
                    f"{path.name}: the header names '{key}' twice; the file is damaged: save it again"
                )
            found[key] = value
        return found

    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path.name}: the safetensors header is not valid JSON; the file is damaged: download it again"
        ) from error
    if not isinstance(entries, dict):
        raise CheckpointError(
            f"{path.name}: the safetensors header is a {type(entries).__name__}, expected an object; "
            "download the file again"
        )
    entries.pop("__metadata__", None)
    for name in entries:
        if not name.isprintable():
            raise CheckpointError(
                f"{path.name}: tensor name {name!r} is not printable text; download the file again"
            )
    return entries


def _tensor(path: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    where = f"{path.name}: tensor '{name}'"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CheckpointError(
            f"{where}: the header entry lacks dtype, shape or data_offsets; save the file again"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise CheckpointError(
            f"{where}: unknown dtype {dtype!r}; expected one of {', '.join(DTYPE_BYTES)}; save it as BF16 or "
            "F32"
        )
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMENSIONS
        or not all(_is_count(dim) and dim < 2**63 for dim in shape)
    ):
        raise CheckpointError(
            f"{where}: shape {str(shape)[:100]} is not a list of sizes; save the file again"
        )
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise CheckpointError(
            f"{where}: data_offsets {offsets!r} is not a pair of positions; save the file again"
        )
    begin, end = offsets
    expected = math.prod(shape) * DTYPE_BYTES[dtype]
    if end - begin != expected:
        raise CheckpointError(
            f"{where}: {end - begin} bytes of data, but shape {shape} of {dtype} takes {expected}; "
            "the file is damaged: download it again"
        )
    return TensorInfo(name, dtype, tuple(shape), path, data_start + begin, expected)


def _check_layout(path: Path, tensors: list[TensorInfo], data_start: int, size: int) -> None:
    expected = data_start
    for tensor in tensors:
        end = tensor.offset + tensor.nbytes
        if end > size:
            raise CheckpointError(
                f"{path.name}: tensor '{tensor.name}' ends at byte {end}, the file at {size}; "
                "the file is truncated: download it again"
            )
        if tensor.offset != expected:
            what = "overlaps the tensor before it" if tensor.offset < expected else "leaves a gap before it"
            raise CheckpointError(
                f"{path.name}: tensor '{tensor.name}' starts at byte {tensor.offset}, expected {expected}: "
                f"it {what}; the file is damaged: download it again"
            )
        expected = end
    if expected != size:
        raise CheckpointError(
            f"{path.name}: {size - expected} bytes after the last tensor; "
            "the file is damaged: download it again"
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
