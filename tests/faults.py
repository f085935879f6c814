"""Ways of breaking one tensor of a GGUF file."""

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
