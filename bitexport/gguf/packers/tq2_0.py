"""TQ2_0: upstream's ternary type of 2.0625 bits per weight, a float16 scale for every 256 weights of a row.

A block is 256 elements of a row in 66 bytes: byte ``32 h + j`` (h of 0, 1) holds elements ``128 h + 32 k +
j`` in bits 2k+1..2k as trit + 1, and the last two bytes are the block's scale as little-endian float16.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitexport.gguf.packers.base import UPSTREAM, Packer
from bitexport.gguf.packers.block_scale import (
    CHUNK_BLOCKS,
    SCALE_TEXT,
    block_scales,
    check_rows,
    check_two_bit,
    from_blocks,
)
from bitexport.gguf.types import TQ2_0
from bitexport.ternary import AnyTernary

CODE_BYTES = 64


def pack(tensor: AnyTernary) -> npt.NDArray[np.uint8]:
    """The bytes of a TQ2_0 tensor: uint8 ``[n / 256 * 66]``. A block of zeros has scale 0, as in ggml.

    Raises:
        UnsupportedError: rows are not a multiple of 256, or float16 cannot hold the scale.
    """
    check_rows(tensor, TQ2_0)
    trits = np.ascontiguousarray(tensor.trits).reshape(-1, 2, 4, 32)
    packed = np.empty((len(trits), TQ2_0.block_bytes), dtype=np.uint8)
    for start in range(0, len(trits), CHUNK_BLOCKS):
        codes = trits[start : start + CHUNK_BLOCKS].view(np.uint8) + np.uint8(1)
        combined = codes[:, :, 0].copy()
        for k in range(1, 4):
            combined |= codes[:, :, k] << np.uint8(2 * k)
        packed[start : start + CHUNK_BLOCKS, :CODE_BYTES] = combined.reshape(len(codes), CODE_BYTES)
    packed[:, CODE_BYTES:] = block_scales(tensor, TQ2_0).view(np.uint8).reshape(-1, 2)
    return packed.reshape(-1)


def unpack(data: npt.NDArray[np.uint8], shape: tuple[int, int]) -> AnyTernary:
    """Bytes of a TQ2_0 tensor of ``shape`` ``[out, in]`` to trits and scales.

    Raises:
        GGUFError: a scale is negative, NaN or infinite.
        UnsupportedError: a code is 3, which ggml reads as twice the scale.
    """
    blocks = data.reshape(-1, TQ2_0.block_bytes)
    trits = np.empty((len(blocks), 2, 4, 32), dtype=np.int8)
    for start in range(0, len(blocks), CHUNK_BLOCKS):
        codes = blocks[start : start + CHUNK_BLOCKS, :CODE_BYTES].reshape(-1, 2, 32)
        check_two_bit(codes)
        for k in range(4):
            trits[start : start + CHUNK_BLOCKS, :, k] = (codes >> np.uint8(2 * k)) & np.uint8(3)
    trits -= np.int8(1)
    scales = np.ascontiguousarray(blocks[:, CODE_BYTES:]).view("<f2").reshape(-1)
    return from_blocks(trits.reshape(-1, TQ2_0.block), scales, shape, TQ2_0)


PACKER = Packer(
    type=TQ2_0,
    pack=pack,
    unpack=unpack,
    scale_type=np.float16,
    scale_text=SCALE_TEXT,
    runs_in=UPSTREAM,
)
