"""Q2_0: upstream's type of 2.25 bits per weight, a float16 scale for every 64 weights of a row.

A block is 64 elements in 18 bytes: the scale as little-endian float16, then 16 bytes, of which byte j holds
elements 4 j + k (k of 0 to 3) in bits 2k+1..2k. A code is trit + 1. The type is more than ternary: code 3
stands for twice the scale, and is rejected here.
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
from bitexport.gguf.types import Q2_0, TensorType
from bitexport.ternary import AnyTernary

SCALE_BYTES = 2


def pack(tensor: AnyTernary) -> npt.NDArray[np.uint8]:
    """The bytes of a Q2_0 tensor: uint8 ``[n / 64 * 18]``. A block of zeros has scale 0, as in ggml.

    Raises:
        UnsupportedError: rows are not a multiple of 64, or float16 cannot hold the scale.
    """
    check_rows(tensor, Q2_0)
    trits = np.ascontiguousarray(tensor.trits).reshape(-1, Q2_0.block // 4, 4)
    packed = np.empty((len(trits), Q2_0.block_bytes), dtype=np.uint8)
    for start in range(0, len(trits), CHUNK_BLOCKS):
        codes = trits[start : start + CHUNK_BLOCKS].view(np.uint8) + np.uint8(1)
        target = packed[start : start + CHUNK_BLOCKS, SCALE_BYTES:]
        target[:] = codes[:, :, 0]
        for k in range(1, 4):
            target |= codes[:, :, k] << np.uint8(2 * k)
    packed[:, :SCALE_BYTES] = block_scales(tensor, Q2_0).view(np.uint8).reshape(-1, 2)
    return packed.reshape(-1)


def unpack(data: npt.NDArray[np.uint8], shape: tuple[int, int]) -> AnyTernary:
    """Bytes of a Q2_0 tensor of ``shape`` ``[out, in]`` to trits and scales.

    Raises:
        GGUFError: a scale is negative, NaN or infinite.
        UnsupportedError: a code is 3, which is not a trit.
    """
    return unpack_blocks(data, shape, Q2_0)


def unpack_blocks(data: npt.NDArray[np.uint8], shape: tuple[int, int], kind: TensorType) -> AnyTernary:
    """Bytes of a tensor whose blocks are those of Q2_0, perhaps of another length.

    Args:
        shape: ``[out, in]``.
        kind: its type, with the length of the blocks.

    Raises:
        GGUFError: a scale is negative, NaN or infinite.
        UnsupportedError: a code is 3, which is not a trit.
    """
    blocks = data.reshape(-1, kind.block_bytes)
    trits = np.empty((len(blocks), kind.block // 4, 4), dtype=np.int8)
    for start in range(0, len(blocks), CHUNK_BLOCKS):
        codes = blocks[start : start + CHUNK_BLOCKS, SCALE_BYTES:]
        check_two_bit(codes)
        for k in range(4):
            trits[start : start + CHUNK_BLOCKS, :, k] = (codes >> np.uint8(2 * k)) & np.uint8(3)
    trits -= np.int8(1)
    scales = np.ascontiguousarray(blocks[:, :SCALE_BYTES]).view("<f2").reshape(-1)
    return from_blocks(trits.reshape(-1, kind.block), scales, shape, kind)


PACKER = Packer(
    type=Q2_0,
    pack=pack,
    unpack=unpack,
    scale_type=np.float16,
    scale_text=SCALE_TEXT,
    runs_in=UPSTREAM,
)
