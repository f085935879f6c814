"""Packed weights of linear_class ``autobitlinear``, offline: its layers multiply by ``weight_scale``.

So the value is ``trit * weight_scale``.
"""

from __future__ import annotations

from bitexport.checkpoint.packings.two_bit import (
    check_packed,
    packed_shape,
    read_scale,
    scale_name,
    unpack_trits,
)
from bitexport.checkpoint.reader import Checkpoint
from bitexport.ternary import TernaryTensor


class PackedMultiply:
    """Two bits a weight; the value is the trit times ``weight_scale``."""

    name = "packed-multiply"

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
        return TernaryTensor(trits, read_scale(checkpoint, weight_name))
