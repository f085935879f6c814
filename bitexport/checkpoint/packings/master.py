"""Master weights ("online"): float tensors that the model quantizes at every forward pass.

As transformers' ``WeightQuant`` computes it, in float32 and over the whole tensor:

    m = max(mean(|w|), 1e-5);  s = 1 / m;  trit = clamp(round_half_to_even(w * s), -1, 1)

The value is ``trit * m``. (transformers divides by ``s``, which is the same number up to the last bit of
``1 / (1 / m)``.) The mean is summed here in float64 and rounded once to float32, so that it is the best
float32 and does not depend on the order of the sum.

Weights that are ternary already, {-a, 0, a}, are quantized once more, because the model does so too: their
trits stay, and ``m`` is ``a`` times the fraction that is not zero. That is seldom meant, so ``a`` is kept as
``stored_scale`` for a warning.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitexport.checkpoint.packings.base import checked_scale
from bitexport.checkpoint.reader import FLOAT_DTYPES, Checkpoint
from bitexport.errors import CheckpointError
from bitexport.ternary import TernaryTensor

#: transformers' lower bound of the mean.
MIN_MEAN = np.float32(1e-5)

#: elements handled at once: small enough to stay in the processor's caches.
CHUNK = 1 << 18


class MasterWeights:
    """Absmean quantization of float weights."""

    name = "master"

    def partners(self, weight_name: str) -> tuple[str, ...]:  # noqa: ARG002
        """None: the scale follows from the weights."""
        return ()

    def stored_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Master weights have the weight's own shape."""
        return shape

    def check(self, checkpoint: Checkpoint, weight_name: str) -> None:
        """The weight must be a float tensor."""
        dtype = checkpoint.info(weight_name).dtype
        if dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"tensor '{weight_name}' has dtype {dtype}, but quantization_config says online: expected "
                "master weights "
                f"in {', '.join(FLOAT_DTYPES)}; a packed checkpoint has quantization_mode offline"
            )

    def unpack(self, checkpoint: Checkpoint, weight_name: str) -> TernaryTensor:
        """Quantize one weight; see the module's formula."""
        return absmean(checkpoint.read(weight_name), weight_name)


def absmean(weights: npt.NDArray[np.float32], name: str) -> TernaryTensor:
    """Absmean-quantize float32 ``weights`` of shape ``[out, in]``; see the module's formula.

    Raises:
        CheckpointError: the mean is not finite.
    """
    flat = weights.reshape(-1)
    total = 0.0
    only: np.float32 | None = np.float32(0)
    for start in range(0, flat.size, CHUNK):
        magnitudes = np.abs(flat[start : start + CHUNK])
        part = float(magnitudes.sum(dtype=np.float64))
        total += part
        if only is not None:  # ordinary weights settle it in their first chunk
            only = _only_magnitude(magnitudes, part, only)
    mean = checked_scale(max(np.float32(total / max(flat.size, 1)), MIN_MEAN), name)
    inverse = np.float32(1) / mean
    trits = np.empty(flat.size, dtype=np.int8)
    for start in range(0, flat.size, CHUNK):
        scaled = flat[start : start + CHUNK] * inverse
        np.rint(scaled, out=scaled)
        np.clip(scaled, -1, 1, out=scaled)
        trits[start : start + CHUNK] = scaled
    return TernaryTensor(trits.reshape(weights.shape), mean, only if only and only != mean else None)


def _only_magnitude(
    magnitudes: npt.NDArray[np.float32], total: float, before: np.float32
) -> np.float32 | None:
    """The one magnitude that all weights have but the zeros, ``before`` included; None where there are more.

    ``before`` is 0 while all were zeros. The sum of so few equal float32 numbers is exact in float64.
    """
    top = magnitudes.max()
    if top == 0:
        return before
    if before not in (0, top) or total != float(top) * np.count_nonzero(magnitudes):
        return None
    return np.float32(top)
