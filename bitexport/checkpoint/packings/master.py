"""Master weights ("online"): float tensors that the model quantizes at every forward pass.

The formula is that of transformers' ``WeightQuant``, in float32 and over the whole tensor:

    m = max(mean(|w|), 1e-5);  s = 1 / m;  trit = clamp(round_half_to_even(w * s), -1, 1)

The value is ``trit * m``. (transformers divides by ``s``, which is the same number up to the last bit of
``1 / (1 / m)``.) The mean is summed here in float64 and rounded once to float32, so that it is the closest
float32 and does not depend on the order of summation.

Weights that are already ternary, with one scale or with several, are not quantized again: see
float_ternary.py.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitexport.checkpoint.packings.base import Scales, checked_scale
from bitexport.checkpoint.packings.float_ternary import (
    CHUNK,
    PACKED_CONFIG,
    FloatWeights,
    already_ternary,
    find_scales,
    has_scale,
)
from bitexport.checkpoint.reader import FLOAT_DTYPES, Checkpoint
from bitexport.errors import CheckpointError
from bitexport.ternary import AnyTernary, TernaryTensor

#: The lower bound of the mean in transformers.
MIN_MEAN = np.float32(1e-5)


class MasterWeights(FloatWeights):
    """Absmean quantization of float weights."""

    name = "master"
    recognised_by = "float tensors; linear_class autobitlinear, quantization_mode online; or 1bitLLM"
    meaning = "rounded to -1, 0, 1 over the mean magnitude, times that mean"

    def check(self, checkpoint: Checkpoint, weight_name: str) -> None:
        """The weight must be a float tensor."""
        dtype = checkpoint.info(weight_name).dtype
        packed = dtype not in FLOAT_DTYPES or has_scale(checkpoint, weight_name)
        if packed and "quantization_config" not in checkpoint.config:
            what = "a weight_scale" if has_scale(checkpoint, weight_name) else f"dtype {dtype}"
            raise CheckpointError(
                f"tensor '{weight_name}' has {what}, but without a quantization_config this "
                f"architecture has master weights; {PACKED_CONFIG}"
            )
        if dtype in FLOAT_DTYPES and packed:
            raise CheckpointError(
                f"tensor '{weight_name}' has a weight_scale, as packed weights and trits do, but "
                "quantization_config says online; expected master weights without one: set quantization_mode "
                "to offline"
            )
        if dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"tensor '{weight_name}' has dtype {dtype}, but quantization_config says online; expected "
                f"master weights in {', '.join(FLOAT_DTYPES)}: for packed weights, set quantization_mode to "
                "offline"
            )

    def scales(self, checkpoint: Checkpoint, weight_name: str) -> Scales:
        """One scale, unless the weights are already ternary; ordinary weights are not read completely.

        Raises:
            CheckpointError: almost all groups are already ternary, but not all.
            UnsupportedError: the weights are already ternary in groups of another size.
        """
        return find_scales(checkpoint, weight_name) or Scales()

    def unpack(self, checkpoint: Checkpoint, weight_name: str) -> AnyTernary:
        """Quantize one weight by the module's formula, unless it is already ternary.

        Raises:
            CheckpointError: almost all groups are already ternary, but not all.
            UnsupportedError: the weights are already ternary in groups of another size.
        """
        weights = checkpoint.read(weight_name)
        ternary = already_ternary(checkpoint, weights, weight_name)
        return absmean(weights, weight_name) if ternary is None else ternary


def absmean(weights: npt.NDArray[np.float32], name: str) -> TernaryTensor:
    """Absmean-quantize float32 ``weights`` of shape ``[out, in]`` by the module's formula.

    Raises:
        CheckpointError: the mean is not finite.
    """
    flat = weights.reshape(-1)
    total = 0.0
    for start in range(0, flat.size, CHUNK):
        total += float(np.abs(flat[start : start + CHUNK]).sum(dtype=np.float64))
    mean = checked_scale(max(np.float32(total / max(flat.size, 1)), MIN_MEAN), name)
    inverse = np.float32(1) / mean
    trits = np.empty(flat.size, dtype=np.int8)
    for start in range(0, flat.size, CHUNK):
        scaled = flat[start : start + CHUNK] * inverse
        np.rint(scaled, out=scaled)
        np.clip(scaled, -1, 1, out=scaled)
        trits[start : start + CHUNK] = scaled
    return TernaryTensor(trits.reshape(weights.shape), mean)
