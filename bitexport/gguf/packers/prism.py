"""PQ2_0 and PTQ1_0: PrismML's types with a float16 scale for every 128 weights of a row. They are only read.

PQ2_0, 34 bytes, is Q2_0 (``q2_0.py``) with blocks twice as long: the scale, then 32 bytes, of which byte j
holds elements 4 j + k (k of 0 to 3) in bits 2k+1..2k. Early files have it under Q2_0's number, 42.

PTQ1_0, 28 bytes, is TQ1_0 (``tq1_0.py``) with blocks half as long. Bytes hold digits in base 3, and the scale
comes last:

    byte j of 0..15    elements j + 16 n               n of 0..4
    byte 16 + j        elements 80 + j + 8 n           j of 0..7, n of 0..4
    byte 24 + j        elements 120 + j + 2 n          j of 0..1, n of 0..3, and a last digit of 0

Source: PrismML-Eng/llama.cpp, ggml-common.h (block_pq2_0, block_ptq1_0) and ggml-quants.c
(dequantize_row_ptq1_0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import numpy.typing as npt

from bitexport.errors import UnsupportedError
from bitexport.gguf.foreign_types import PQ2_0, PTQ1_0
from bitexport.gguf.packers.block_scale import CHUNK_BLOCKS, from_blocks
from bitexport.gguf.packers.tq1_0 import TRITS_OF_BYTE
from bitexport.ternary import AnyTernary

#: The three sections of a block of PTQ1_0: first byte, number of bytes, first element, digits per byte.
SECTIONS = ((0, 16, 0, 5), (16, 8, 80, 5), (24, 2, 120, 4))


def unpack_pq2_0(data: npt.NDArray[np.uint8], shape: Sequence[int]) -> AnyTernary:
    """Bytes of a PQ2_0 tensor of ``shape`` to trits and scales; matrices are stacked.

    Raises:
        GGUFError: a scale is negative, NaN or infinite.
        UnsupportedError: a code is 3, which is not a trit.
    """
    blocks = data.reshape(-1, PQ2_0.block_bytes)
    trits = np.empty((len(blocks), PQ2_0.block // 4, 4), dtype=np.int8)
    for start in range(0, len(blocks), CHUNK_BLOCKS):
        codes = blocks[start : start + CHUNK_BLOCKS, 2:]
        if np.any(codes & (codes >> np.uint8(1)) & np.uint8(0x55)):
            raise UnsupportedError(
                "it contains a code of 3, twice the scale, so it is not ternary; convert the model elsewhere"
            )
        for k in range(4):
            trits[start : start + CHUNK_BLOCKS, :, k] = (codes >> np.uint8(2 * k)) & np.uint8(3)
    trits -= np.int8(1)
    scales = np.ascontiguousarray(blocks[:, :2]).view("<f2").reshape(-1)
    return from_blocks(trits.reshape(-1, PQ2_0.block), scales, _matrix(shape), PQ2_0)


def unpack_ptq1_0(data: npt.NDArray[np.uint8], shape: Sequence[int]) -> AnyTernary:
    """Bytes of a PTQ1_0 tensor of ``shape`` to trits and scales; matrices are stacked.

    Raises:
        GGUFError: a scale is negative, NaN or infinite.
    """
    blocks = data.reshape(-1, PTQ1_0.block_bytes)
    trits = np.empty((len(blocks), PTQ1_0.block), dtype=np.int8)
    for start, (place, count, first, used) in product(range(0, len(blocks), CHUNK_BLOCKS), SECTIONS):
        codes = blocks[start : start + CHUNK_BLOCKS, place : place + count]
        digits = TRITS_OF_BYTE[codes].swapaxes(1, 2)[:, :used]  # [blocks, digits, bytes]
        trits[start : start + CHUNK_BLOCKS, first : first + count * used] = digits.reshape(len(codes), -1)
    scales = np.ascontiguousarray(blocks[:, 26:]).view("<f2").reshape(-1)
    return from_blocks(trits, scales, _matrix(shape), PTQ1_0)


def _matrix(shape: Sequence[int]) -> tuple[int, int]:
    return math.prod(shape[:-1]), shape[-1]
