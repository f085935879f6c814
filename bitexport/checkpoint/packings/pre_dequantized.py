"""Pre-dequantized weights: float tensors that hold only -a, 0 and a.

The trit is the sign and the scale is ``a``, exactly. Absmean would find the same trits, but as their scale
``a`` times the fraction that is not zero: so this packing is recognised before master weights are quantized.
It is told by the values being equal, bit for bit, never by how large they are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitexport.checkpoint.packings.base import checked_scale
from bitexport.checkpoint.reader import FLOAT_DTYPES, Checkpoint
from bitexport.errors import CheckpointError, UnsupportedError
from bitexport.ternary import TernaryTensor

#: elements looked at together: small enough to stay in the processor's caches.
CHUNK = 1 << 18

#: the scale of a tensor that is all zeros, transformers' lower bound.
ZEROS_SCALE = np.float32(1e-5)


class PreDequantized:
    """Float weights that are ternary already."""

    name = "pre-dequantized"
    recognised_by = "float tensors that hold only -a, 0 and a"
    meaning = "the sign, times a"

    def partners(self, weight_name: str) -> tuple[str, ...]:  # noqa: ARG002
        """None: the scale is in the weights."""
        return ()

    def stored_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The weight's own shape."""
        return shape

    def check(self, checkpoint: Checkpoint, weight_name: str) -> None:
        """The weight must be a float tensor, and its first rows ternary."""
        info = checkpoint.info(weight_name)
        if info.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"tensor '{weight_name}' has dtype {info.dtype}, and config.json has no quantization_config "
                "that says what its values are; expected one with quant_method bitnet: packed weights need "
                'its linear_class, "bitlinear" if the model divides by weight_scale and "autobitlinear" if '
                "it multiplies"
            )
        if len(info.shape) == 2 and info.shape[1]:
            # a look at the beginning, so that a float model fails before anything is written
            rows = next(checkpoint.read_rows(weight_name, max(1, CHUNK // info.shape[1])), None)
            if rows is not None and only_magnitude(rows) is None:
                raise _not_ternary(rows, weight_name)

    def bias_factor(self, checkpoint: Checkpoint, weight_name: str) -> np.float32:  # noqa: ARG002
        """A bias is added as it is."""
        return np.float32(1)

    def unpack(self, checkpoint: Checkpoint, weight_name: str) -> TernaryTensor:
        """Read one weight."""
        weights = checkpoint.read(weight_name)
        magnitude = only_magnitude(weights)
        if magnitude is None:
            raise _not_ternary(weights, weight_name)
        return signs(weights, magnitude, weight_name)


def only_magnitude(weights: npt.NDArray[np.float32]) -> np.float32 | None:
    """The one magnitude that float32 ``weights`` have but for zeros; None where there are more.

    0 where all are zeros. Ordinary weights settle it in their first chunk.
    """
    flat = weights.reshape(-1)
    only = np.float32(0)
    for start in range(0, flat.size, CHUNK):
        magnitudes = np.abs(flat[start : start + CHUNK])
        top = magnitudes.max()
        if top == 0:
            continue
        if only not in (0, top) or np.count_nonzero(magnitudes) != np.count_nonzero(magnitudes == top):
            return None
        only = np.float32(top)
    return only


def signs(weights: npt.NDArray[np.float32], magnitude: np.float32, name: str) -> TernaryTensor:
    """``weights``, whose only magnitude is ``magnitude``, as trits and scale."""
    scale = checked_scale(magnitude if magnitude else ZEROS_SCALE, name)
    return TernaryTensor(np.sign(weights).astype(np.int8), scale, dequantized=True)


def _not_ternary(weights: npt.NDArray[np.float32], name: str) -> CheckpointError | UnsupportedError:
    """Why float weights without a quantization_config are not ternary, as the error to raise."""
    magnitudes = np.abs(weights)
    top = magnitudes.max(axis=1, keepdims=True)
    if np.all((magnitudes == 0) | (magnitudes == top)):
        low, high = float(top[top > 0].min()), float(top.max())
        return UnsupportedError(
            f"tensor '{name}' is ternary with a scale for each row or group of rows, {low:g} to {high:g}; "
            "a ternary tensor has one scale here, as I2_S does: TQ1_0 and TQ2_0 hold one for each 256 "
            "weights of a row, Q2_0 one for each 64. Write one of those with llama.cpp's "
            "convert_hf_to_gguf.py --outtype tq2_0"
        )
    return CheckpointError(
        f"no quantization_config in config.json, and tensor '{name}' holds more than -a, 0 and a, so its "
        "weights are not ternary; expected "
        'quant_method "bitnet": for master weights add linear_class "autobitlinear" and quantization_mode '
        '"online", and list a layer that stays float in modules_to_not_convert; a teacher in float becomes a '
        "file of float16 with --float"
    )
