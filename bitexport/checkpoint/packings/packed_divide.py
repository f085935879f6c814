"""Packed weights of linear_class ``bitlinear``, the default: its layers divide by ``weight_scale``.

The value is ``trit * (1 / weight_scale)``, with the reciprocal rounded to float32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitexport.checkpoint.packings.two_bit import TwoBit


class PackedDivide(TwoBit):
    """Two bits per weight; the value is the trit divided by ``weight_scale``."""

    name = "packed-divide"
    recognised_by = "uint8 [out / 4, in]; linear_class bitlinear, or none given"
    meaning = "trit / weight_scale"

    def scale(self, stored: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The reciprocals of ``weight_scale``."""
        return np.float32(1) / stored
