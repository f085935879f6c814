"""TQ2_0, upstream's ternary type of 2.0625 bits: exact for trits, with the scale rounded to float16.

A block is 256 elements of a row in 66 bytes: byte ``32 h + j`` (h of 0, 1) holds elements ``128 h + 32 k +
j`` in bits 2k+1..2k as trit + 1, and the last two bytes are the block's scale as little-endian float16.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitexport.errors import UnsupportedError
from bitexport.gguf.types import TQ2_0
from bitexport.ternary import TernaryTensor

CHUNK_BLOCKS = 2048


def rounded_scale(scale: np.float32) -> np.float16:
    """The scale as this type stores it.

    Raises:
        UnsupportedError: float16 has no such number: it would become zero or infinite.
    """
    with np.errstate(over="ignore", under="ignore"):
        rounded = np.float16(scale)
    if not np.isfinite(rounded) or rounded == 0:
        raise UnsupportedError(
            f"scale {scale} becomes {rounded} in TQ2_0's float16; use --type i2_s, which keeps float32"
        )
    return rounded


def pack(tensor: TernaryTensor) -> npt.NDArray[np.uint8]:
    """The bytes of a TQ2_0 tensor: uint8 ``[n / 256 * 66]``. A block of zeros has scale 0, as in ggml.

    Raises:
        UnsupportedError: rows are no multiple of 256, or float16 cannot hold the scale.
    """
    if not TQ2_0.fits(tensor.trits.shape):
        raise UnsupportedError(
            f"rows of {tensor.trits.shape[-1]} are no multiple of {TQ2_0.block}, which TQ2_0 needs; use "
            "--type i2_s"
        )
    scale = rounded_scale(tensor.scale)
    trits = np.ascontiguousarray(tensor.trits).reshape(-1, 2, 4, 32)
    packed = np.empty((len(trits), TQ2_0.block_bytes), dtype=np.uint8)
    for start in range(0, len(trits), CHUNK_BLOCKS):
        chunk = trits[start : start + CHUNK_BLOCKS]
        codes = chunk.view(np.uint8) + np.uint8(1)
        joined = codes[:, :, 0].copy()
        for k in range(1, 4):
            joined |= codes[:, :, k] << np.uint8(2 * k)
        used = np.any(chunk.reshape(len(chunk), -1), axis=1)
        packed[start : start + CHUNK_BLOCKS, :64] = joined.reshape(len(chunk), 64)
        scales = np.where(used, scale, np.float16(0)).astype("<f2")
        packed[start : start + CHUNK_BLOCKS, 64:] = scales.view(np.uint8).reshape(-1, 2)
    return packed.reshape(-1)
