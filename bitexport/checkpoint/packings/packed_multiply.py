"""Packed weights of linear_class ``autobitlinear``, offline: its layers multiply by ``weight_scale``.

The value is ``trit * weight_scale``. transformers multiplies after adding the bias, so the bias of such a
layer is its stored value times ``weight_scale``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitexport.checkpoint.packings.stored_scales import checked_scales
from bitexport.checkpoint.packings.two_bit import TwoBit, read_scales, scale_name
from bitexport.checkpoint.reader import Checkpoint


class PackedMultiply(TwoBit):
    """Two bits per weight; the value is the trit times ``weight_scale``."""

    name = "packed-multiply"
    recognised_by = "uint8 [out / 4, in]; linear_class autobitlinear, quantization_mode offline"
    meaning = "trit * weight_scale"

    def scale(self, stored: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """``weight_scale`` itself."""
        return stored

    def bias_factor(self, checkpoint: Checkpoint, weight_name: str) -> np.float32 | npt.NDArray[np.float32]:
        """``weight_scale``, which also multiplies the bias; 1 if it differs within a row."""
        scales = checked_scales(read_scales(checkpoint, weight_name), scale_name(weight_name))
        if scales.shape[1] > 1:
            return np.float32(1)
        return np.float32(scales[0, 0]) if scales.size == 1 else scales[:, 0]
