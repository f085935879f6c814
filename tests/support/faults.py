"""Ways of breaking one tensor, or one piece of metadata, of a GGUF file."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bitexport.gguf.reader import read_gguf

#: Changes the file's bytes in place, given the offset and the length of a tensor.
Change = Callable[[bytearray, int, int], None]


def changed(source: Path, target: Path, tensor_name: str, change: Change) -> Path:
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


def scale_by(factor: float) -> Change:
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
    """Turn the sign of the first 256 values of a float16 tensor."""
    assert length >= 512
    values = -np.frombuffer(data, np.float16, 256, offset)
    data[offset : offset + 512] = values.tobytes()


def invert_scale(data: bytearray, offset: int, length: int) -> None:
    """The classic mistake: the scale's reciprocal."""
    (scale,) = struct.unpack_from("<f", data, offset + length - 32)
    struct.pack_into("<f", data, offset + length - 32, 1 / scale)


def zero(data: bytearray, offset: int, length: int) -> None:
    """Make a tensor all zeros."""
    data[offset : offset + length] = bytes(length)


def with_float(source: Path, target: Path, key: str, value: float) -> Path:
    """A copy with another float32 under a metadata key."""
    data = bytearray(source.read_bytes())
    at = _after_key(data, key, 6)  # GGUF's number of float32
    struct.pack_into("<f", data, at, value)
    target.write_bytes(data)
    return target


def with_text(source: Path, target: Path, key: str, value: str) -> Path:
    """A copy with another text of the same length under a metadata key."""
    data = bytearray(source.read_bytes())
    at = _after_key(data, key, 8)  # GGUF's number of string
    (length,) = struct.unpack_from("<Q", data, at)
    assert length == len(value)
    data[at + 8 : at + 8 + length] = value.encode()
    target.write_bytes(data)
    return target


def _after_key(data: bytearray, key: str, kind: int) -> int:
    """Where the value of a metadata key begins, which has to be of GGUF's type ``kind``."""
    named = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind)
    assert data.count(named) == 1
    return data.index(named) + len(named)
