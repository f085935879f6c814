"""Packed weights of linear_class ``autobitlinear``, offline: its layers multiply by ``weight_scale``.

So the value is ``trit * weight_scale``.
"""

from __future__ import annotations

import numpy as np

from bitexport.checkpoint.packings.two_bit import TwoBit


class PackedMultiply(TwoBit):
    """Two bits a weight; the value is the trit times ``weight_scale``."""

    name = "packed-multiply"

    def scale(self, stored: np.float32) -> np.float32:
        """``weight_scale`` itself."""
        return stored
