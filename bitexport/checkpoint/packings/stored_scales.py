"""Scales that a checkpoint stores beside packed weights: one, one per row, or one per group of columns."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitexport.checkpoint.packings.base import Scales, checked_scale
from bitexport.ternary import merge_equal_scales


def checked_scales(scales: npt.NDArray[np.float32], tensor_name: str) -> npt.NDArray[np.float32]:
    """``scales`` if all are positive and finite.

    Raises:
        ScaleError: one is not.
    """
    wrong = ~(np.isfinite(scales) & (scales > 0))
    if wrong.any():
        checked_scale(scales[wrong][0], tensor_name)
    return scales


def per_row(shape: tuple[int, ...], rows: int, columns: int) -> int | None:
    """How many scales of a tensor of this shape a row of a weight has.

    Returns:
        0 if the whole weight has one scale; None if the shape cannot be one of scales.
    """
    if shape in ((), (1,), (1, 1)):
        return 0
    count = 1 if len(shape) == 1 else shape[1] if len(shape) == 2 else 0
    return count if count and shape[0] == rows and columns % count == 0 else None


def scales_of(scales: npt.NDArray[np.float32], columns: int) -> Scales:
    """What follows from the scales ``[out, n]``, or ``[1, 1]``, of a weight of ``columns`` columns."""
    merged = merge_equal_scales(scales, columns) if scales.size > 1 else scales
    used = scales[scales > 0]
    low, high = (float(used.min()), float(used.max())) if used.size else (1.0, 1.0)
    return Scales(None if merged.size == 1 else columns // merged.shape[1], low, high)
