"""Packed weights of linear_class ``bitlinear``, the default: its layers divide by ``weight_scale``.

So the value is ``trit * (1 / weight_scale)``, the reciprocal rounded to float32.
"""

from __future__ import annotations

import numpy as np

from bitexport.checkpoint.packings.base import checked_scale
from bitexport.checkpoint.packings.two_bit import (
    check_packed,
    packed_shape,
    read_scale,
    scale_name,
    unpack_trits,
)
from bitexport.checkpoint.reader import Checkpoint
from bitexport.ternary import TernaryTensor


class PackedDivide:
    """Two bits a weight; the value is the trit over ``weight_scale``."""

    name = "packed-divide"

    def partners(self, weight_name: str) -> tuple[str, ...]:
        """The weight's ``weight_scale``."""
        return (scale_name(weight_name),)

    def stored_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """``[out / 4, in]``."""
        return packed_shape(shape)

    def check(self, checkpoint: Checkpoint, weight_name: str) -> None:
        """uint8 bytes and one scale."""
        check_packed(checkpoint, weight_name)

    def unpack(self, checkpoint: Checkpoint, weight_name: str) -> TernaryTensor:
        """Read one weight."""
        trits = unpack_trits(checkpoint.read(weight_name), weight_name)
        inverse = read_scale(checkpoint, weight_name)
        with np.errstate(over="ignore"):
            scale = np.float32(1) / inverse
        return TernaryTensor(trits, checked_scale(scale, scale_name(weight_name)))
