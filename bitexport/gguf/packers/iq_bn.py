"""IQ1_BN, IQ2_BN and IQ2_BN_R4: ik_llama.cpp's ternary types, with a scale for every row. They are only read.

A row begins with its scale, float16 in IQ1_BN and float32 in IQ2_BN, and goes on with blocks of 64 elements.
Codes are trit + 1.

IQ2_BN, 16 bytes: byte j holds elements j, j + 16, j + 32 and j + 48 in bits 1-0, 3-2, 5-4 and 7-6.

IQ1_BN, 13 bytes: bytes 3 n + k (n of 0 to 3, k of 0 to 2) hold elements 16 n + 5 k to 16 n + 5 k + 4, and
byte 12 holds elements 15, 31, 47 and 63, as the digits of a number in base 3, least significant first. The
byte is not the number v itself but ``ceil(v * 256 / 243)``.

IQ2_BN_R4 interleaves four rows: their four scales, then 64 bytes for each of their blocks, of which byte
16 l + 4 r + i holds elements 16 l + i, + 4, + 8 and + 12 of row r in bits 1-0, 3-2, 5-4 and 7-6.

Source: ikawrakow/ik_llama.cpp 8337e4c, iqk_quantize.cpp (quantize_one_row_1bn, quantize_one_row_2bn,
repack_iq2_bn).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bitexport.errors import GGUFError
from bitexport.gguf.foreign_types import IQ1_BN, IQ2_BN, IQ2_BN_R4
from bitexport.gguf.packers.row_scale import from_rows
from bitexport.gguf.types import TensorType
from bitexport.ternary import AnyTernary

#: Weights decoded at once.
CHUNK_WEIGHTS = 1 << 20

SHIFTS = np.array([0, 2, 4, 6], dtype=np.uint8)


def _digits(byte: int) -> list[int]:
    """The five digits of a byte, least significant first; of any byte, as ik_llama.cpp reads it."""
    return [(3 * (byte * 3**place % 256)) >> 8 for place in (4, 3, 2, 1, 0)]


#: The trits of each byte of IQ1_BN, int8 [256, 5].
TRITS_OF_BYTE = np.array([_digits(byte) for byte in range(256)], dtype=np.int8) - np.int8(1)


def unpack_iq1_bn(data: npt.NDArray[np.uint8], shape: Sequence[int]) -> AnyTernary:
    """Bytes of an IQ1_BN tensor of ``shape`` to trits and scales; matrices are stacked.

    Raises:
        GGUFError: the length is wrong.
        GGUFScaleError: a scale is negative, NaN or infinite.
    """
    rows = _rows(data, shape, IQ1_BN)
    scales = np.ascontiguousarray(rows[:, :2]).view("<f2").reshape(-1).astype(np.float32)
    trits = np.empty((len(rows), shape[-1] // 64, 4, 16), dtype=np.int8)
    step = _step(shape)
    for start in range(0, len(rows), step):
        blocks = rows[start : start + step, 2:].reshape(-1, shape[-1] // 64, 13)
        fives = TRITS_OF_BYTE[blocks[:, :, :12]]  # [rows, blocks, 12, 5]
        trits[start : start + step, :, :, :15] = fives.reshape(*blocks.shape[:2], 4, 15)
        trits[start : start + step, :, :, 15] = TRITS_OF_BYTE[blocks[:, :, 12]][:, :, :4]
    return from_rows(trits.reshape(len(scales), -1), scales, IQ1_BN.name)


def unpack_iq2_bn(data: npt.NDArray[np.uint8], shape: Sequence[int]) -> AnyTernary:
    """Bytes of an IQ2_BN tensor of ``shape`` to trits and scales; matrices are stacked.

    Raises:
        GGUFError: the length is wrong, or a code is 3.
        GGUFScaleError: a scale is negative, NaN or infinite.
    """
    rows = _rows(data, shape, IQ2_BN)
    scales = np.ascontiguousarray(rows[:, :4]).view("<f4").reshape(-1)
    trits = np.empty((len(rows), shape[-1] // 64, 4, 16), dtype=np.int8)
    step = _step(shape)
    for start in range(0, len(rows), step):
        blocks = rows[start : start + step, 4:].reshape(-1, shape[-1] // 64, 1, 16)
        trits[start : start + step] = _trits(blocks >> SHIFTS[:, None], IQ2_BN)
    return from_rows(trits.reshape(len(scales), -1), scales, IQ2_BN.name)


def unpack_iq2_bn_r4(data: npt.NDArray[np.uint8], shape: Sequence[int]) -> AnyTernary:
    """Bytes of an IQ2_BN_R4 tensor of ``shape`` to trits and scales; matrices are stacked.

    Raises:
        GGUFError: the length is wrong, or a code is 3.
        GGUFScaleError: a scale is negative, NaN or infinite.
    """
    fours = _rows(data, shape, IQ2_BN_R4).reshape(math.prod(shape[:-1]) // 4, -1)
    scales = np.ascontiguousarray(fours[:, :16]).view("<f4").reshape(-1)
    columns = shape[-1]
    trits = np.empty((len(fours), 4, columns // 64, 4, 4, 4), dtype=np.int8)
    step = max(1, _step(shape) // 4)
    for start in range(0, len(fours), step):
        blocks = fours[start : start + step, 16:].reshape(-1, columns // 64, 4, 4, 1, 4)  # l, row, -, i
        codes = (blocks >> SHIFTS[:, None]).transpose(0, 3, 1, 2, 4, 5)  # row, block, l, shift, i
        trits[start : start + step] = _trits(codes, IQ2_BN_R4)
    return from_rows(trits.reshape(len(scales), -1), scales, IQ2_BN_R4.name)


def _rows(data: npt.NDArray[np.uint8], shape: Sequence[int], kind: TensorType) -> npt.NDArray[np.uint8]:
    if not kind.fits(shape) or data.size != kind.nbytes(shape):
        raise GGUFError(
            f"a tensor of type {kind.name} and shape {list(shape)} has {data.size} bytes; the file is "
            "damaged: download it again"
        )
    return data.reshape(math.prod(shape[:-1]), -1)


def _step(shape: Sequence[int]) -> int:
    return max(1, CHUNK_WEIGHTS // max(1, shape[-1]))


def _trits(codes: npt.NDArray[np.uint8], kind: TensorType) -> npt.NDArray[np.int8]:
    codes = codes & np.uint8(3)
    if codes.max(initial=0) > 2:
        raise GGUFError(
            f"it contains a code of 3, which {kind.name} does not use; the file is damaged: download it again"
        )
    return codes.view(np.int8) - np.int8(1)
