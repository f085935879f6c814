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

import numpy as np
import numpy.typing as npt

from bitexport.gguf.foreign_types import PQ2_0, PTQ1_0
from bitexport.gguf.packers import q2_0, tq1_0
from bitexport.ternary import AnyTernary

#: The three sections of a block of PTQ1_0.
SECTIONS: tuple[tq1_0.Section, ...] = ((0, 16, 0, 5), (16, 8, 80, 5), (24, 2, 120, 4))


def unpack_pq2_0(data: npt.NDArray[np.uint8], shape: Sequence[int]) -> AnyTernary:
    """Bytes of a PQ2_0 tensor of ``shape`` to trits and scales; matrices are stacked.

    Raises:
        GGUFError: a scale is negative, NaN or infinite.
        UnsupportedError: a code is 3, which is not a trit.
    """
    return q2_0.unpack_blocks(data, _matrix(shape), PQ2_0)


def unpack_ptq1_0(data: npt.NDArray[np.uint8], shape: Sequence[int]) -> AnyTernary:
    """Bytes of a PTQ1_0 tensor of ``shape`` to trits and scales; matrices are stacked.

    Raises:
        GGUFError: a scale is negative, NaN or infinite.
    """
    return tq1_0.unpack_sections(data, _matrix(shape), PTQ1_0, SECTIONS)


def _matrix(shape: Sequence[int]) -> tuple[int, int]:
    return math.prod(shape[:-1]), shape[-1]
