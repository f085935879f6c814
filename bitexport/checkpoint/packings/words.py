"""Two-bit codes in 32-bit words along a row, shared by the packings that store them that way."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitexport.checkpoint.packings.base import PackingDefaults
from bitexport.checkpoint.reader import Checkpoint

#: Codes per word.
PER_WORD = 16


class InWords(PackingDefaults):
    """The shape of weights that are stored in words along a row."""

    def stored_shape(
        self,
        checkpoint: Checkpoint,  # noqa: ARG002
        weight_name: str,  # noqa: ARG002
        shape: tuple[int, int],
    ) -> tuple[int, ...]:
        """``[out, in / 16]``, rounded up: the last word of a row may be padded."""
        return shape[0], -(-shape[1] // PER_WORD)


def codes_of_words(words: npt.NDArray[np.integer], columns: int) -> npt.NDArray[np.uint8]:
    """The codes of a weight, uint8 ``[out, columns]``.

    Args:
        words: int32 or uint32 ``[out, n]``; column ``16 i + k`` is in bits 2k+1..2k of word i. The codes
            after ``columns`` are padding.
    """
    # byte j of a little-endian word has bits 8j+7..8j
    packed = np.ascontiguousarray(words).view(np.uint8)
    codes = np.empty((*packed.shape, 4), np.uint8)
    for k in range(4):
        np.bitwise_and(packed >> np.uint8(2 * k), np.uint8(3), out=codes[..., k])
    return np.ascontiguousarray(codes.reshape(len(packed), -1)[:, :columns])
