"""Float weights that are already ternary: they become trits and scales, and are never quantized again.

Absmean would give the trits of a tensor with one scale ``a``, but ``a`` times the nonzero fraction as their
scale; with several scales it would change most values. So both packings of float weights look here first.
Groups are recognised by magnitudes that are equal bit for bit, never by their size.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitexport.checkpoint.packings.base import PackingDefaults, Scales, checked_scale
from bitexport.checkpoint.packings.scale_groups import (
    ScaleGroups,
    equal_neighbours,
    find_scale_groups,
    is_ordinary,
    row_chunks,
)
from bitexport.checkpoint.reader import Checkpoint
from bitexport.errors import CheckpointError, UnsupportedError
from bitexport.ternary import STEPS, AnyTernary, GroupedTernary, TernaryTensor, common_magnitudes

#: Elements processed at once, few enough to stay in the CPU's caches.
CHUNK = 1 << 18

#: The scale of a tensor that is all zeros: the lower bound in transformers.
ZEROS_SCALE = np.float32(1e-5)


#: What to do with packed weights whose config.json does not say how they are stored.
PACKED_CONFIG = (
    'expected one with quant_method bitnet: for packed weights, set its linear_class to "bitlinear" if the '
    'model divides by weight_scale or "autobitlinear" if it multiplies'
)


class FloatWeights(PackingDefaults):
    """What the packings of float weights have in common."""

    def holds(self, checkpoint: Checkpoint, weight_name: str) -> bool:  # noqa: ARG002
        """False: any float tensor may be one."""
        return False

    def partners(self, weight_name: str) -> tuple[str, ...]:  # noqa: ARG002
        """None: the scale is in the weights."""
        return ()

    def stored_shape(
        self,
        checkpoint: Checkpoint,  # noqa: ARG002
        weight_name: str,  # noqa: ARG002
        shape: tuple[int, int],
    ) -> tuple[int, ...]:
        """The weight's own shape."""
        return shape


def has_scale(checkpoint: Checkpoint, weight_name: str) -> bool:
    """Whether a weight has a ``weight_scale``, so that its values alone are not those of the weight."""
    return weight_name.removesuffix(".weight") + ".weight_scale" in checkpoint.tensors


def first_rows(checkpoint: Checkpoint, name: str) -> npt.NDArray[np.float32] | None:
    """The first rows of a float matrix, about :data:`CHUNK` elements; None if it has none."""
    shape = checkpoint.info(name).shape
    if len(shape) != 2 or shape[1] == 0:
        return None
    return next(checkpoint.read_rows(name, max(1, CHUNK // shape[1])), None)


def rules_out_ternary(checkpoint: Checkpoint, name: str) -> bool:
    """Whether the first rows of a float matrix show that it is not ternary yet; False if it has none.

    Raises:
        UnsupportedError: it is ternary, but not in groups that bitexport knows.
    """
    first = first_rows(checkpoint, name)
    if first is None or not is_ordinary(first):
        return False
    _check_neighbours(checkpoint, first, name)
    return True


def find_scales(checkpoint: Checkpoint, name: str) -> Scales | None:
    """The scales of a float tensor that is already ternary; None for ordinary weights.

    Only the first rows of ordinary weights are read.

    Raises:
        CheckpointError, UnsupportedError: as :func:`already_ternary`.
    """
    if rules_out_ternary(checkpoint, name):
        return None
    columns = checkpoint.info(name).shape[1]
    chunk = max(1, CHUNK // columns)
    found = find_scale_groups(checkpoint.read_rows(name, chunk))
    if found is None:
        return None
    rounded = 0
    if not found.complete:
        for rows in checkpoint.read_rows(name, chunk):
            rounded += _rounded_groups(checkpoint, found, rows, name)
    return Scales(found.group, found.low, found.high, found.share, rounded)


def already_ternary(checkpoint: Checkpoint, weights: npt.NDArray[np.float32], name: str) -> AnyTernary | None:
    """Float32 ``weights`` ``[out, in]`` as trits and scales if they are already ternary; otherwise None.

    Raises:
        CheckpointError: almost all groups contain only -a, 0 and a, but not all.
        UnsupportedError: the weights are ternary, but not in groups that bitexport knows.
    """
    found = find_scale_groups(weights)
    if found is None:
        _check_neighbours(checkpoint, weights[: max(1, CHUNK // max(weights.shape[-1], 1))], name)
        return None
    if not found.complete:
        _rounded_groups(checkpoint, found, weights, name)
    if found.group is None:
        return signs(weights, np.float32(found.high), name)
    step = STEPS.get(checkpoint.info(name).dtype, 0.0)
    out, columns = weights.shape
    trits = np.empty((out, columns), np.int8)
    scales = np.empty((out, columns // found.group), np.float32)
    start = 0
    for rows in row_chunks(weights):
        end = start + len(rows)
        np.sign(rows, out=trits[start:end], casting="unsafe")
        if found.complete:
            scales[start:end] = np.abs(rows).reshape(len(rows), -1, found.group).max(axis=2)
        else:
            common, _ = common_magnitudes(rows.reshape(-1, found.group), step)
            scales[start:end] = common.reshape(len(rows), -1)
        start = end
    return GroupedTernary(trits, scales)


def signs(weights: npt.NDArray[np.float32], magnitude: np.float32, name: str) -> TernaryTensor:
    """``weights`` whose only nonzero magnitude is ``magnitude``, as trits and scale."""
    scale = checked_scale(magnitude if magnitude else ZEROS_SCALE, name)
    return TernaryTensor(np.sign(weights).astype(np.int8), scale, dequantized=True)


def _rounded_groups(
    checkpoint: Checkpoint, found: ScaleGroups, rows: npt.NDArray[np.float32], name: str
) -> int:
    """How many groups in ``rows`` ``[n, in]`` contain two magnitudes one step of the tensor's dtype apart.

    Raises:
        CheckpointError: magnitudes in a group are further apart.
    """
    step = STEPS.get(checkpoint.info(name).dtype)
    groups = rows.reshape(-1, found.group or rows.shape[1])
    scales, fits = common_magnitudes(groups, step or 0.0)
    if step is None or not fits.all():
        raise CheckpointError(
            f"tensor '{name}' {found.describe()}, but {found.misfit}; expected all of them to: quantized "
            "again, its values would change. Save it as the training code quantized it, without rounding or "
            "merging anything into it afterwards"
        )
    magnitudes = np.abs(groups)
    return int(np.count_nonzero(np.any((magnitudes != 0) & (magnitudes != scales[:, None]), axis=1)))


def _check_neighbours(checkpoint: Checkpoint, first: npt.NDArray[np.float32], name: str) -> None:
    """Raise UnsupportedError if weights without known groups look ternary all the same."""
    if not equal_neighbours(first):
        return
    keep = "convert with --float, which keeps the values (16 bits per weight)"
    if "quantization_config" in checkpoint.config:
        keep = f"remove quantization_config from config.json and {keep}"
    raise UnsupportedError(
        f"tensor '{name}' is already ternary, or nearly: most neighbours have the same magnitude, but not in "
        "groups of 256, 128, 64 or 32 columns; expected one scale per tensor, row or such a group: quantized "
        f"as master weights, its values would change; {keep}"
    )
