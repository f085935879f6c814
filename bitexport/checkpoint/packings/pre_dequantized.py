"""Pre-dequantized weights: float tensors whose only values are -a, 0 and a.

The trit is the sign and the scale is exactly ``a``. Absmean would give the same trits, but ``a`` times the
nonzero fraction as their scale; therefore this packing is checked before master weights are quantized. It is
recognised by the magnitudes being equal bit for bit, never by their size.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitexport.checkpoint.packings.base import checked_scale
from bitexport.checkpoint.packings.scale_groups import find_scale_groups
from bitexport.checkpoint.reader import FLOAT_DTYPES, Checkpoint
from bitexport.errors import CheckpointError, UnsupportedError
from bitexport.ternary import TernaryTensor

#: Elements processed at once, few enough to stay in the CPU's caches.
CHUNK = 1 << 18

#: The scale of a tensor that is all zeros: the lower bound in transformers.
ZEROS_SCALE = np.float32(1e-5)


class PreDequantized:
    """Float weights that are already ternary."""

    name = "pre-dequantized"
    recognised_by = "float tensors whose only values are -a, 0 and a"
    meaning = "sign * a"

    def partners(self, weight_name: str) -> tuple[str, ...]:  # noqa: ARG002
        """None: the scale is in the weights."""
        return ()

    def stored_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The weight's own shape."""
        return shape

    def check(self, checkpoint: Checkpoint, weight_name: str) -> None:
        """The weight must be a float tensor whose first rows are ternary."""
        info = checkpoint.info(weight_name)
        if info.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"tensor '{weight_name}' has dtype {info.dtype}, but config.json has no quantization_config "
                "that says how its values are stored; expected one with quant_method bitnet: for packed "
                'weights, set its linear_class to "bitlinear" if the model divides by weight_scale or '
                '"autobitlinear" if it multiplies'
            )
        # so that a float model fails before anything is written
        rows = first_rows(checkpoint, weight_name)
        if rows is not None and only_magnitude(rows) is None:
            raise _not_ternary(rows, weight_name)

    def bias_factor(self, checkpoint: Checkpoint, weight_name: str) -> np.float32:  # noqa: ARG002
        """1: the bias is added unchanged."""
        return np.float32(1)

    def unpack(self, checkpoint: Checkpoint, weight_name: str) -> TernaryTensor:
        """Read one weight."""
        weights = checkpoint.read(weight_name)
        magnitude = only_magnitude(weights)
        if magnitude is None:
            raise _not_ternary(weights, weight_name)
        return signs(weights, magnitude, weight_name)


def first_rows(checkpoint: Checkpoint, name: str) -> npt.NDArray[np.float32] | None:
    """The first rows of a float matrix, about :data:`CHUNK` elements; None if it has none."""
    shape = checkpoint.info(name).shape
    if len(shape) != 2 or shape[1] == 0:
        return None
    return next(checkpoint.read_rows(name, max(1, CHUNK // shape[1])), None)


def only_magnitude(weights: npt.NDArray[np.float32]) -> np.float32 | None:
    """The only nonzero magnitude in float32 ``weights``; None if there are several, 0 if all are zeros.

    Ordinary weights are ruled out by their first chunk.
    """
    flat = weights.reshape(-1)
    only = np.float32(0)
    for start in range(0, flat.size, CHUNK):
        magnitudes = np.abs(flat[start : start + CHUNK])
        largest = magnitudes.max()
        if largest == 0:
            continue
        if only not in (0, largest):
            return None
        if np.count_nonzero(magnitudes) != np.count_nonzero(magnitudes == largest):
            return None
        only = np.float32(largest)
    return only


def signs(weights: npt.NDArray[np.float32], magnitude: np.float32, name: str) -> TernaryTensor:
    """``weights`` whose only nonzero magnitude is ``magnitude``, as trits and scale."""
    scale = checked_scale(magnitude if magnitude else ZEROS_SCALE, name)
    return TernaryTensor(np.sign(weights).astype(np.int8), scale, dequantized=True)


def _not_ternary(weights: npt.NDArray[np.float32], name: str) -> CheckpointError | UnsupportedError:
    """The error to raise for float weights without a quantization_config that are not ternary."""
    groups = find_scale_groups(weights)
    if groups is not None:
        return UnsupportedError(
            f"tensor '{name}' {groups.describe()}; expected one scale per tensor: convert with --float, "
            "which keeps the values (16 bits per weight)"
        )
    return CheckpointError(
        f"no quantization_config in config.json, and tensor '{name}' contains values other than -a, 0 and a, "
        "so its weights are not ternary; for master weights, which the model quantizes, convert with "
        "--master; "
        "to convert a float teacher to float16, use --float"
    )
