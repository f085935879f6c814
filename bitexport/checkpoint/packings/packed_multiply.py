"""Packed weights of linear_class ``autobitlinear``, offline: its layers multiply by ``weight_scale``.

The value is ``trit * weight_scale``. transformers multiplies after adding the bias, so the bias of such a
layer is its stored value times ``weight_scale``.
"""

from __future__ import annotations

import numpy as np

from bitexport.checkpoint.packings.two_bit import TwoBit, read_scale
from bitexport.checkpoint.reader import Checkpoint


class PackedMultiply(TwoBit):
    """Two bits per weight; the value is the trit times ``weight_scale``."""

    name = "packed-multiply"
    recognised_by = "uint8 [out / 4, in]; linear_class autobitlinear, quantization_mode offline"
    meaning = "trit * weight_scale"

    def scale(self, stored: np.float32) -> np.float32:
        """``weight_scale`` itself."""
        return stored

    def bias_factor(self, checkpoint: Checkpoint, weight_name: str) -> np.float32:
        """``weight_scale``, which also multiplies the bias."""
        return read_scale(checkpoint, weight_name)
