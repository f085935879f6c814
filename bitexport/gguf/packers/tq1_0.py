"""TQ1_0: upstream's ternary type of 1.6875 bits per weight, a float16 scale for every 256 weights of a row.

A block is 256 elements of a row in 54 bytes. Each of the first 52 bytes holds up to five elements, as the
digits (trit + 1) of a number in base 3, most significant first:

    byte j of 0..31    elements j + 32 n               n of 0..4
    byte 32 + j        elements 160 + j + 16 n         j of 0..15, n of 0..4
    byte 48 + j        elements 240 + j + 4 n          j of 0..3, n of 0..3, and a last digit of 0

The byte is not the number v itself but ``ceil(v * 256 / 243)``, a fraction of 256: multiplying it by three
carries out one digit at a time. The last two bytes are the scale as little-endian float16.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import numpy.typing as npt

from bitexport.gguf.packers.base import UPSTREAM, Packer
from bitexport.gguf.packers.block_scale import (
    CHUNK_BLOCKS,
    SCALE_TEXT,
    block_scales,
    check_rows,
    from_blocks,
)
from bitexport.gguf.types import TQ1_0, TensorType
from bitexport.ternary import AnyTernary

DIGITS = 5
CODE_BYTES = 52
SCALE_BYTES = 2

#: A section of a block: first byte, number of bytes, first element, digits per byte.
Section = tuple[int, int, int, int]

SECTIONS: tuple[Section, ...] = ((0, 32, 0, 5), (32, 16, 160, 5), (48, 4, 240, 4))

#: The stored byte of each number below 3^5.
BYTE_OF_NUMBER = np.array([(256 * v + 242) // 243 for v in range(3**DIGITS)], dtype=np.uint8)


def _digits(byte: int) -> list[int]:
    digits = []
    for _ in range(DIGITS):
        digits.append(3 * byte >> 8)
        byte = 3 * byte & 0xFF
    return digits


#: The trits of each byte, int8 [256, 5]; for the bytes that ggml never writes, as ggml reads them.
TRITS_OF_BYTE = np.array([_digits(byte) for byte in range(256)], dtype=np.int8) - np.int8(1)


def pack(tensor: AnyTernary) -> npt.NDArray[np.uint8]:
    """The bytes of a TQ1_0 tensor: uint8 ``[n / 256 * 54]``. A block of zeros has scale 0, as in ggml.

    Raises:
        UnsupportedError: rows are not a multiple of 256, or float16 cannot hold the scale.
    """
    check_rows(tensor, TQ1_0)
    trits = np.ascontiguousarray(tensor.trits).reshape(-1, TQ1_0.block)
    packed = np.empty((len(trits), TQ1_0.block_bytes), dtype=np.uint8)
    for start, (place, count, first, used) in product(range(0, len(trits), CHUNK_BLOCKS), SECTIONS):
        codes = trits[start : start + CHUNK_BLOCKS, first : first + count * used].view(np.uint8) + np.uint8(1)
        codes = codes.reshape(-1, used, count)
        number = codes[:, 0].copy()
        for digit in range(1, used):
            number = number * np.uint8(3) + codes[:, digit]
        number *= np.uint8(3 ** (DIGITS - used))
        packed[start : start + CHUNK_BLOCKS, place : place + count] = BYTE_OF_NUMBER[number]
    packed[:, CODE_BYTES:] = block_scales(tensor, TQ1_0).view(np.uint8).reshape(-1, 2)
    return packed.reshape(-1)


def unpack(data: npt.NDArray[np.uint8], shape: tuple[int, int]) -> AnyTernary:
    """Bytes of a TQ1_0 tensor of ``shape`` ``[out, in]`` to trits and scales.

    Raises:
        GGUFError: a scale is negative, NaN or infinite.
    """
    return unpack_sections(data, shape, TQ1_0, SECTIONS)


def unpack_sections(
    data: npt.NDArray[np.uint8], shape: tuple[int, int], kind: TensorType, sections: Sequence[Section]
) -> AnyTernary:
    """Bytes of a tensor whose blocks hold digits as those of TQ1_0 do, and then the scale.

    Args:
        shape: ``[out, in]``.
        kind: its type, with the length of the blocks.
        sections: those of a block, as :data:`SECTIONS`.

    Raises:
        GGUFError: a scale is negative, NaN or infinite.
    """
    blocks = data.reshape(-1, kind.block_bytes)
    trits = np.empty((len(blocks), kind.block), dtype=np.int8)
    for start, (place, count, first, used) in product(range(0, len(blocks), CHUNK_BLOCKS), sections):
        codes = blocks[start : start + CHUNK_BLOCKS, place : place + count]
        digits = TRITS_OF_BYTE[codes].swapaxes(1, 2)[:, :used]  # [blocks, digits, bytes]
        trits[start : start + CHUNK_BLOCKS, first : first + count * used] = digits.reshape(len(codes), -1)
    scales = np.ascontiguousarray(blocks[:, -SCALE_BYTES:]).view("<f2").reshape(-1)
    return from_blocks(trits, scales, shape, kind)


PACKER = Packer(
    type=TQ1_0,
    pack=pack,
    unpack=unpack,
    scale_type=np.float16,
    scale_text=SCALE_TEXT,
    runs_in=UPSTREAM,
)
