"""Q4_0, upstream's type of 4.5 bits: codes of four bits, a float16 scale for every 32 weights of a row.

A block is 32 elements in 18 bytes: the scale as little-endian float16, then 16 bytes, of which byte j has
element j in its low bits and element j + 16 in its high bits. A value is ``(code - 8) * scale``, so trits
have codes 7, 8 and 9. ggml's own quantizer, which takes an eighth of the largest weight as the scale, would
make one of the signs 1/8 too small.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitexport.errors import UnsupportedError
from bitexport.gguf.packers.base import UPSTREAM, Packer
from bitexport.gguf.packers.block_scale import SCALE_TEXT, check_rows, from_blocks, rounded_scale
from bitexport.gguf.types import Q4_0
from bitexport.ternary import AnyTernary, TernaryTensor

SCALE_BYTES = 2

#: Blocks processed at once.
CHUNK_BLOCKS = 1 << 17


def pack(tensor: AnyTernary) -> npt.NDArray[np.uint8]:
    """The bytes of a Q4_0 tensor: uint8 ``[n / 32 * 18]``. Every block has the tensor's scale.

    Raises:
        UnsupportedError: rows are not a multiple of 32, float16 cannot hold the scale, or there is more than
            one scale.
    """
    check_rows(tensor, Q4_0)
    if not isinstance(tensor, TernaryTensor):
        raise UnsupportedError(f"its scale changes every {tensor.group} weights; expected one for the tensor")
    scale = rounded_scale(tensor.scale, Q4_0.name)
    trits = tensor.trits.reshape(-1, 2, Q4_0.block // 2)
    packed = np.empty((len(trits), Q4_0.block_bytes), dtype=np.uint8)
    packed[:, :SCALE_BYTES] = np.frombuffer(np.array([scale], dtype="<f2").tobytes(), dtype=np.uint8)
    for start in range(0, len(trits), CHUNK_BLOCKS):
        codes = (trits[start : start + CHUNK_BLOCKS] + np.int8(8)).view(np.uint8)
        packed[start : start + CHUNK_BLOCKS, SCALE_BYTES:] = codes[:, 0] | codes[:, 1] << np.uint8(4)
    return packed.reshape(-1)


def unpack(data: npt.NDArray[np.uint8], shape: tuple[int, int]) -> AnyTernary:
    """Bytes of a Q4_0 tensor of ``shape`` ``[out, in]`` to trits and scales.

    Raises:
        GGUFError: a scale that is negative, NaN or infinite.
        UnsupportedError: a code other than 7, 8 and 9, which is not a trit.
    """
    blocks = data.reshape(-1, Q4_0.block_bytes)
    trits = np.empty((len(blocks), 2, Q4_0.block // 2), dtype=np.int8)
    trits[:, 0] = blocks[:, SCALE_BYTES:] & np.uint8(15)
    trits[:, 1] = blocks[:, SCALE_BYTES:] >> np.uint8(4)
    trits -= np.int8(8)
    if np.abs(trits).max(initial=0) > 1:
        raise UnsupportedError("it holds codes other than 7, 8 and 9, and so is not ternary")
    scales = np.ascontiguousarray(blocks[:, :SCALE_BYTES]).view("<f2").reshape(-1)
    return from_blocks(trits.reshape(-1, Q4_0.block), scales, shape, Q4_0)


PACKER = Packer(
    type=Q4_0,
    pack=pack,
    unpack=unpack,
    scale_type=np.float16,
    scale_text=SCALE_TEXT,
    runs_in=UPSTREAM,
)
