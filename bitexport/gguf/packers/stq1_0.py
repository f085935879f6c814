"""STQ1_0: AngelSlim's type of 1.3125 bits per weight for weights of which every fourth is 0. It is only read.

A block is 256 elements in 42 bytes: 32 bytes of codes, 8 bytes of signs, and the scale as little-endian
float16. It has 64 groups of four elements that are 16 apart: group g of 0 to 63 is elements 64 c + j + 16 p
(p of 0 to 3), where c = g / 16 and j = g % 16. Its code is in byte g / 2, the lower bits for an even g, and
its sign is bit g % 8 of sign byte g / 8. The code's bits 3-2 say which of the four is 0, its bits 0 and 1
whether the second and the third of the others have the other sign than the first, and the sign is that of
the first: 1 is negative.

Source: ggml-org/llama.cpp, pull request 22836 (block_stq1_0, stq1_0_codebook).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bitexport.gguf.foreign_types import STQ1_0
from bitexport.gguf.packers.block_scale import CHUNK_BLOCKS, from_blocks
from bitexport.ternary import AnyTernary

CODE_BYTES = 32
SIGN_BYTES = 8


def _pattern(index: int) -> list[int]:
    """The four trits of a sign (bit 4) and a code (bits 3 to 0)."""
    sign, zero = index >> 4, (index >> 2) & 3
    first = -1 if sign else 1
    trits = [first, first if not index & 1 else -first, first if not index & 2 else -first]
    trits.insert(zero, 0)
    return trits


#: The trits of each sign and code, int8 [32, 4].
PATTERNS = np.array([_pattern(index) for index in range(32)], dtype=np.int8)


def unpack(data: npt.NDArray[np.uint8], shape: Sequence[int]) -> AnyTernary:
    """Bytes of an STQ1_0 tensor of ``shape`` to trits and scales; matrices are stacked.

    Raises:
        GGUFError: a scale is negative, NaN or infinite.
    """
    blocks = data.reshape(-1, STQ1_0.block_bytes)
    trits = np.empty((len(blocks), 4, 4, 16), dtype=np.int8)  # chunk, place in the group, group
    for start in range(0, len(blocks), CHUNK_BLOCKS):
        some = blocks[start : start + CHUNK_BLOCKS]
        pairs = some[:, :CODE_BYTES, None] >> np.array([0, 4], dtype=np.uint8)
        codes = (pairs & np.uint8(15)).reshape(-1, 64)
        signs = np.unpackbits(some[:, CODE_BYTES : CODE_BYTES + SIGN_BYTES], axis=1, bitorder="little")
        groups = PATTERNS[codes | signs << np.uint8(4)]  # [blocks, 64, 4]
        trits[start : start + CHUNK_BLOCKS] = groups.reshape(-1, 4, 16, 4).swapaxes(2, 3)
    scales = np.ascontiguousarray(blocks[:, CODE_BYTES + SIGN_BYTES :]).view("<f2").reshape(-1)
    matrix = (math.prod(shape[:-1]), shape[-1])
    return from_blocks(trits.reshape(-1, STQ1_0.block), scales, matrix, STQ1_0)
