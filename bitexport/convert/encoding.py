"""Encodes a tensor's values as the bytes of a GGUF type, and collects statistics about them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitexport.errors import UnsupportedError
from bitexport.gguf.packers import ALL_PACKERS
from bitexport.gguf.types import F16, F32
from bitexport.gguf.writer import TensorSpec
from bitexport.ternary import AnyTernary, TernaryTensor


@dataclass(slots=True)
class TensorStatistics:
    """Collected while one tensor is encoded; all zero for a tensor that is only copied.

    Attributes:
        weights: how many were encoded.
        zeros: how many of a ternary tensor's trits are zero.
        scale_min, scale_max: the scales of a ternary tensor, before the output type rounds them.
        scale_rounding: the largest relative change of a scale by the output type.
        dequantized: see :class:`~bitexport.ternary.TernaryTensor`.
        flushed: how many float weights are too small for float16 and became zero.
    """

    weights: int = 0
    zeros: int = 0
    scale_min: float = math.inf
    scale_max: float = 0.0
    scale_rounding: float = 0.0
    dequantized: bool = False
    flushed: int = 0


def encode_ternary(
    spec: TensorSpec, weights: AnyTernary, statistics: TensorStatistics
) -> npt.NDArray[np.uint8]:
    """A ternary tensor as bytes of the type of ``spec``.

    Args:
        statistics: filled in.

    Raises:
        UnsupportedError: the type cannot hold the tensor's scales or shape.
    """
    packer = ALL_PACKERS[spec.type.name]
    packed = packer.pack(weights)
    if isinstance(weights, TernaryTensor):
        scales = np.atleast_1d(weights.scale)
        statistics.dequantized = weights.dequantized
    else:
        scales = weights.scales[weights.scales > 0]
    statistics.weights = weights.trits.size
    statistics.zeros = weights.trits.size - int(np.count_nonzero(weights.trits))
    statistics.scale_min = float(scales.min(initial=np.inf))
    statistics.scale_max = float(scales.max(initial=0))
    statistics.scale_rounding = packer.rounding(weights)
    return packed


def encode_float(
    spec: TensorSpec, values: npt.NDArray[np.float32], statistics: TensorStatistics
) -> npt.NDArray[Any]:
    """Some rows of a float tensor as bytes of the type of ``spec``.

    Args:
        statistics: added to.

    Raises:
        UnsupportedError: float16 cannot hold a value.
    """
    statistics.weights += values.size
    if spec.type is F32:
        return values
    if spec.type is F16:
        with np.errstate(over="ignore"):
            halves = values.astype("<f2")
        statistics.flushed += int(np.count_nonzero(values) - np.count_nonzero(halves))
        if not np.isfinite(halves.sum(dtype=np.float64)):
            worst = float(np.abs(values).max())
            # never a linear layer: the plan makes those F32 if this could happen
            raise UnsupportedError(
                f"tensor '{spec.name}' holds {worst:g}, more than float16's 65504; use another --embed-type"
            )
        return halves
    # imported here: only the k-quants need our native libraries
    from bitexport.runtime.ggml import quantize

    return quantize(np.ascontiguousarray(values), spec.type.name)
