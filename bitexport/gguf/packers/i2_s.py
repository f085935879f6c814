"""I2_S: two bits per weight, one scale per tensor.

Codes are trit + 1. A block of 128 consecutive elements of the flattened tensor becomes 32 bytes; byte j holds
elements j, j + 32, j + 64 and j + 96 in bits 7-6, 5-4, 3-2 and 1-0. After the codes come 32 bytes: the scale
as little-endian float32, eight times (some writers store it only once; readers use the first). See
docs/i2_s.md.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from bitexport.errors import GGUFError, GGUFScaleError, UnsupportedError
from bitexport.gguf.packers.base import Packer
from bitexport.gguf.types import I2_S, alternatives
from bitexport.ternary import AnyTernary, TernaryTensor

#: Blocks processed at once, few enough that their codes stay in the CPU's caches.
CHUNK_BLOCKS = 4096

#: The bit positions of the codes from a block's four quarters.
SHIFTS = np.array([6, 4, 2, 0], dtype=np.uint8)


def pack(tensor: AnyTernary) -> npt.NDArray[np.uint8]:
    """The bytes of an I2_S tensor: uint8 ``[n / 4 + 32]``.

    Raises:
        UnsupportedError: n is not a multiple of 128, or there is more than one scale.
        ValueError: a value is not a trit, which no packing produces.
    """
    count = tensor.trits.size
    if count % I2_S.block:
        raise UnsupportedError(
            f"{count} elements ({' x '.join(map(str, tensor.trits.shape))}) are not a multiple of "
            f"{I2_S.block}, which I2_S needs; use --type {alternatives(tensor.trits.shape)}"
        )
    if not isinstance(tensor, TernaryTensor):
        raise UnsupportedError(
            f"its scale changes every {tensor.group} weights, but I2_S has one scale per tensor; use "
            f"--type {alternatives(tensor.trits.shape, tensor.group)}"
        )
    codes = np.ascontiguousarray(tensor.trits).view(np.uint8).reshape(-1, 4, 32)
    packed = np.empty(I2_S.nbytes((count,)), dtype=np.uint8)
    blocks = packed[: -I2_S.tail_bytes].reshape(-1, 32)
    for start in range(0, len(codes), CHUNK_BLOCKS):
        chunk = codes[start : start + CHUNK_BLOCKS] + np.uint8(1)
        if chunk.max() > 2:
            raise ValueError("a trit is outside {-1, 0, 1}")
        target = blocks[start : start + CHUNK_BLOCKS]
        np.left_shift(chunk[:, 0], SHIFTS[0], out=target)
        for quarter in range(1, 4):
            target |= chunk[:, quarter] << SHIFTS[quarter]
    packed[-I2_S.tail_bytes :].view("<f4")[:] = tensor.scale
    return packed


def unpack(data: npt.NDArray[np.uint8], shape: tuple[int, int]) -> TernaryTensor:
    """Bytes of an I2_S tensor of ``shape`` ``[out, in]`` to trits and scale.

    Raises:
        GGUFError: the length is wrong, a code is 3, or the scale is zero, negative, NaN or infinite.
    """
    count = math.prod(shape)
    if count % I2_S.block or data.size != I2_S.nbytes(shape):
        raise GGUFError(
            f"an I2_S tensor of shape {list(shape)} has {data.size} bytes; expected {count} / 4 + "
            f"{I2_S.tail_bytes} with {count} a multiple of {I2_S.block}: the file is damaged"
        )
    scale = read_scale(data)
    blocks = data[: -I2_S.tail_bytes].reshape(-1, 32)
    trits = np.empty((len(blocks), 4, 32), dtype=np.int8)
    unpack_blocks(blocks, trits)
    return TernaryTensor(trits.reshape(shape), scale)


def unpack_blocks(blocks: npt.NDArray[np.uint8], trits: npt.NDArray[np.int8]) -> None:
    """Unpack blocks, uint8 ``[blocks, 32]``, into ``trits``, int8 ``[blocks, 4, 32]``.

    Raises:
        GGUFError: a code is 3.
    """
    codes = trits.view(np.uint8)
    for start in range(0, len(blocks), CHUNK_BLOCKS):
        chunk = blocks[start : start + CHUNK_BLOCKS]
        if np.any(chunk & (chunk >> np.uint8(1)) & np.uint8(0x55)):
            raise GGUFError(
                "an I2_S tensor contains a code of 3; expected 0, 1 or 2: the file is damaged or uses type "
                "number 36 for another layout"
            )
        for quarter in range(4):
            codes[start : start + CHUNK_BLOCKS, quarter] = (chunk >> SHIFTS[quarter]) & np.uint8(3)
        trits[start : start + CHUNK_BLOCKS] -= np.int8(1)


PACKER = Packer(
    type=I2_S,
    pack=pack,
    unpack=unpack,
    scale_type=np.float32,
    scale_text="float32, exact; one per tensor",
    runs_in="our libllama; other I2_S runtimes, where rows are a multiple of 128",
)


def read_scale(data: npt.NDArray[np.uint8]) -> np.float32:
    """The scale of an I2_S tensor, from its bytes.

    Raises:
        GGUFScaleError: it is zero, negative, NaN or infinite.
    """
    scale = np.float32(np.frombuffer(data[-I2_S.tail_bytes :][:4].tobytes(), dtype="<f4")[0])
    if not np.isfinite(scale) or not scale > 0:
        raise GGUFScaleError(
            f"an I2_S tensor has scale {scale}; expected a positive, finite number: "
            "the file is damaged or uses type number 36 for another layout"
        )
    return scale
