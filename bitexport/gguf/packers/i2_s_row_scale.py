"""I2_S with row scales (``i2_s_row_scale_v1``): two bits per weight, a float32 scale for every row.

Each matrix, one for every expert, is a list of blocks of 128 elements as in I2_S (``i2_s.py``), then one
scale per row as little-endian float32, then zeros up to a multiple of 32 bytes. A row of zeros has scale 0.
The number of the type is I2_S's, 36; the key ``<architecture>.tensor_data_layout`` tells them apart.

Source: isHuangXin/BitNet 518bfec, utils/convert-qwen36-to-gguf-bitnet.py (quantize_to_i2_s).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bitexport.errors import GGUFError
from bitexport.gguf.foreign_types import I2_S_ROW_SCALE
from bitexport.gguf.packers.i2_s import unpack_blocks
from bitexport.gguf.packers.row_scale import from_rows
from bitexport.ternary import AnyTernary


def unpack(data: npt.NDArray[np.uint8], shape: Sequence[int]) -> AnyTernary:
    """Bytes of a tensor of ``shape`` ``[out, in]`` or ``[experts, out, in]`` to trits and scales, stacked.

    Raises:
        GGUFError: the length is wrong, or a code is 3.
        GGUFScaleError: a scale is negative, NaN or infinite.
    """
    if not I2_S_ROW_SCALE.fits(shape) or data.size != I2_S_ROW_SCALE.nbytes(shape):
        raise GGUFError(
            f"an I2_S tensor with row scales and shape {list(shape)} has {data.size} bytes; the file "
            "is damaged: download it again"
        )
    matrices, rows, columns = math.prod(shape[:-2]), math.prod(shape[-2:-1]), shape[-1]
    stored = data.reshape(matrices, -1)
    codes = rows * columns // 4
    trits = np.empty((matrices, rows * columns), dtype=np.int8)
    for matrix in range(matrices):
        unpack_blocks(stored[matrix, :codes].reshape(-1, 32), trits[matrix].reshape(-1, 4, 32))
    scales = np.ascontiguousarray(stored[:, codes : codes + 4 * rows]).view("<f4").reshape(-1)
    return from_rows(trits.reshape(-1, columns), scales, "I2_S")
