"""GGUF files in tests: reading tensors, and copies with changed keys or tensors or with one fault."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np

from bitexport.gguf.packers import PACKERS
from bitexport.gguf.reader import GGUFFile, GGUFTensor, read_gguf
from bitexport.gguf.types import TensorType
from bitexport.gguf.writer import MetadataValue, RawValue, TensorSpec, write_gguf

#: Gets a tensor, its type and its bytes; returns the new type and bytes.
TensorChange = Callable[[GGUFTensor, TensorType, np.ndarray], tuple[TensorType, np.ndarray]]

#: Changes the file's bytes in place, given the offset and the length of a tensor.
ByteChange = Callable[[bytearray, int, int], None]


def tensors_of(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    file = read_gguf(path)
    return {t.name: (t.type.name, t.shape, file.data(t).tobytes()) for t in file.tensors}


def values(file: GGUFFile, name: str) -> np.ndarray:
    """A tensor of the file as float32."""
    (tensor,) = [t for t in file.tensors if t.name == name]
    data = file.data(tensor)
    if tensor.type.name in ("i2_s", "q2_0"):  # which the gguf package lacks
        matrix = (math.prod(tensor.shape[:-1]), tensor.shape[-1])
        return PACKERS[tensor.type.name].unpack(data, matrix).dequantize().reshape(tensor.shape)
    kind = gguf.GGMLQuantizationType(tensor.type.id)
    if kind is gguf.GGMLQuantizationType.F32:
        return data.view(np.float32).reshape(tensor.shape)
    return gguf.quants.dequantize(data.reshape(*tensor.shape[:-1], -1), kind)


def rewritten(
    source: Path,
    target: Path,
    *,
    metadata: Mapping[str, MetadataValue] = {},
    drop: Sequence[str] = (),
    architecture: str | None = None,
    change: TensorChange = lambda _, kind, data: (kind, data),
    rename: Callable[[str], str | None] = lambda name: name,
) -> Path:
    """A changed copy of ``source``; another ``architecture`` also changes the prefix of its keys.

    ``drop`` is for keys; a tensor that ``rename`` gives None is left out.
    """
    file = read_gguf(source)
    old = file.metadata["general.architecture"]
    new = architecture or old
    keys: dict[str, MetadataValue] = {
        key.replace(f"{old}.", f"{new}.", 1) if key.startswith(f"{old}.") else key: RawValue(file.raw(key))
        for key in file.metadata
        if key not in ("general.architecture", *drop)
    }
    keys.update(metadata)
    data: dict[str, np.ndarray] = {}
    specs = []
    for tensor in file.tensors:
        name = rename(tensor.name)
        if name is not None:
            kind, data[name] = change(tensor, tensor.type, np.array(file.data(tensor)))
            specs.append(TensorSpec(name, tensor.shape, kind))
    write_gguf(target, new, keys, specs, lambda spec: [data[spec.name]], force=True)
    return target


def as_microsoft_writes(source: Path, target: Path) -> Path:
    """A copy like Microsoft's files: no pre-tokenizer, a single copy of the scale, the old architecture."""

    def once(_: GGUFTensor, kind: TensorType, data: np.ndarray) -> tuple[TensorType, np.ndarray]:
        if kind.name == "i2_s":
            data[-28:] = np.arange(28)  # readers ignore these bytes
        return kind, data

    bitexport_keys = [key for key in read_gguf(source).metadata if key.startswith("bitexport.")]
    drop = ["tokenizer.ggml.pre", "tokenizer.ggml.add_eos_token", *bitexport_keys]
    return rewritten(source, target, architecture="bitnet-25", drop=drop, change=once)


# -- copies with one fault in the bytes ---------------------------------------------------------------------


def changed(source: Path, target: Path, tensor_name: str, change: ByteChange) -> Path:
    tensor = next(tensor for tensor in read_gguf(source).tensors if tensor.name == tensor_name)
    data = bytearray(source.read_bytes())
    change(data, tensor.offset, tensor.nbytes)
    target.write_bytes(data)
    return target


def double_scale(data: bytearray, offset: int, length: int) -> None:
    (scale,) = struct.unpack_from("<f", data, offset + length - 32)
    struct.pack_into("<f", data, offset + length - 32, 2 * scale)


def flip_one_trit(data: bytearray, offset: int, _length: int) -> None:
    data[offset] ^= 0b10000000 if data[offset] >> 6 != 1 else 0b01000000  # -1 <-> +1, or 0 -> -1


def halve_gain(data: bytearray, offset: int, length: int) -> None:
    gains = np.frombuffer(data, np.float32, length // 4, offset) / 2
    data[offset : offset + length] = gains.tobytes()


def scale_by(factor: float) -> ByteChange:
    """Multiply a ternary tensor's scale."""

    def change(data: bytearray, offset: int, length: int) -> None:
        (scale,) = struct.unpack_from("<f", data, offset + length - 32)
        struct.pack_into("<f", data, offset + length - 32, factor * scale)

    return change


def double_floats(data: bytearray, offset: int, length: int) -> None:
    """Double a float32 tensor."""
    values = np.frombuffer(data, np.float32, length // 4, offset) * 2
    data[offset : offset + length] = values.tobytes()


def double_halves(data: bytearray, offset: int, length: int) -> None:
    """Double a float16 tensor."""
    values = np.frombuffer(data, np.float16, length // 2, offset) * np.float16(2)
    data[offset : offset + length] = values.tobytes()


def negate_a_row(data: bytearray, offset: int, length: int) -> None:
    """Negate the first 256 values of a float16 tensor."""
    assert length >= 512
    values = -np.frombuffer(data, np.float16, 256, offset)
    data[offset : offset + 512] = values.tobytes()


def invert_scale(data: bytearray, offset: int, length: int) -> None:
    """Store the reciprocal of the scale, the classic mistake."""
    (scale,) = struct.unpack_from("<f", data, offset + length - 32)
    struct.pack_into("<f", data, offset + length - 32, 1 / scale)


def zero(data: bytearray, offset: int, length: int) -> None:
    """Make a tensor all zeros."""
    data[offset : offset + length] = bytes(length)


def with_float(source: Path, target: Path, key: str, value: float) -> Path:
    """A copy with another float32 under a metadata key."""
    data = bytearray(source.read_bytes())
    at = _after_key(data, key, 6)  # GGUF's type number of float32
    struct.pack_into("<f", data, at, value)
    target.write_bytes(data)
    return target


def with_text(source: Path, target: Path, key: str, value: str) -> Path:
    """A copy with another text of the same length under a metadata key."""
    data = bytearray(source.read_bytes())
    at = _after_key(data, key, 8)  # GGUF's type number of string
    (length,) = struct.unpack_from("<Q", data, at)
    assert length == len(value)
    data[at + 8 : at + 8 + length] = value.encode()
    target.write_bytes(data)
    return target


def _after_key(data: bytearray, key: str, kind: int) -> int:
    """The position of the value of a metadata key, whose type must be GGUF's ``kind``."""
    named = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind)
    assert data.count(named) == 1
    return data.index(named) + len(named)
