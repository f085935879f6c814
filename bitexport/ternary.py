"""The value types between reading and writing: a ternary weight matrix, as trits and scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class TernaryTensor:
    """A weight matrix whose every value is ``trit * scale``.

    Every packing (``bitexport.checkpoint.packings``) produces it and every packer
    (``bitexport.gguf.packers``) consumes it, so that neither needs to know about the other.

    Attributes:
        trits: int8, shape ``[out, in]``, values in {-1, 0, +1}, row-major.
        scale: float32, positive and finite; one for the whole tensor.
        dequantized: whether it was stored as floats whose only values are -scale, 0 and scale.
    """

    trits: npt.NDArray[np.int8]
    scale: np.float32
    dequantized: bool = False

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The matrix as float32, shape ``[out, in]``."""
        return self.trits.astype(np.float32) * self.scale


@dataclass(frozen=True, slots=True)
class GroupedTernary:
    """A weight matrix whose rows are divided into groups, each with its own scale.

    Only block types and float16 can store it; I2_S has one scale per tensor.

    Attributes:
        trits: int8, shape ``[out, in]``, values in {-1, 0, +1}, row-major.
        scales: float32, shape ``[out, in / group]``, finite; positive, or 0 for a group that is all zeros.
    """

    trits: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]

    @property
    def group(self) -> int:
        """How many neighbouring weights of a row share a scale."""
        return int(self.trits.shape[1] // self.scales.shape[1])

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The matrix as float32, shape ``[out, in]``."""
        return self.trits.astype(np.float32) * np.repeat(self.scales, self.group, axis=1)


AnyTernary: TypeAlias = TernaryTensor | GroupedTernary


def collapse_equal_scales(trits: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]) -> AnyTernary:
    """A :class:`TernaryTensor` if all groups have the same scale, otherwise a :class:`GroupedTernary`.

    Args:
        trits, scales: as in :class:`GroupedTernary`. A tensor that is all zeros gets scale 1.
    """
    largest = np.float32(scales.max(initial=0))
    if np.all((scales == largest) | (scales == 0)):
        return TernaryTensor(trits, largest if largest > 0 else np.float32(1))
    return GroupedTernary(trits, scales)
