"""Pre-dequantized weights: float tensors whose only values are -a, 0 and a, with one ``a`` or several.

The trit is the sign and the scale is exactly ``a``: one for the tensor, for each row, or for each group of
neighbouring weights in a row. See float_ternary.py.
"""

from __future__ import annotations

from bitexport.checkpoint.packings.base import Scales
from bitexport.checkpoint.packings.float_ternary import (
    PACKED_CONFIG,
    FloatWeights,
    already_ternary,
    find_scales,
    has_scale,
    rules_out_ternary,
)
from bitexport.checkpoint.packings.mlx_affine import without_config
from bitexport.checkpoint.reader import FLOAT_DTYPES, Checkpoint
from bitexport.errors import CheckpointError
from bitexport.ternary import AnyTernary


class PreDequantized(FloatWeights):
    """Float weights that are already ternary."""

    name = "pre-dequantized"
    recognised_by = (
        "float tensors whose only values are -a, 0 and a, with an a per tensor, per row, or per group of "
        "256, 128, 64 or 32 columns"
    )
    meaning = "sign * a"

    def check(self, checkpoint: Checkpoint, weight_name: str) -> None:
        """The weight must be a float tensor whose first rows are ternary."""
        info = checkpoint.info(weight_name)
        if info.dtype == "U32":
            raise without_config(weight_name)
        if has_scale(checkpoint, weight_name):
            raise CheckpointError(
                f"tensor '{weight_name}' has a weight_scale, but config.json has no quantization_config that "
                f"says how to apply it; {PACKED_CONFIG}"
            )
        if info.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"tensor '{weight_name}' has dtype {info.dtype}, but config.json has no quantization_config "
                f"that says how its values are stored; {PACKED_CONFIG}"
            )
        # so that a float model fails before anything is written
        if rules_out_ternary(checkpoint, weight_name):
            raise _not_ternary(weight_name)

    def scales(self, checkpoint: Checkpoint, weight_name: str) -> Scales:
        """The groups of one weight; reads all of it.

        Raises:
            CheckpointError: the weight is not ternary, or not all of its groups are.
        """
        found = find_scales(checkpoint, weight_name)
        if found is None:
            raise _not_ternary(weight_name)
        return found

    def unpack(self, checkpoint: Checkpoint, weight_name: str) -> AnyTernary:
        """Read one weight."""
        found = already_ternary(checkpoint, checkpoint.read(weight_name), weight_name)
        if found is None:
            raise _not_ternary(weight_name)
        return found


def _not_ternary(name: str) -> CheckpointError:
    """The error to raise for float weights without a quantization_config that are not ternary."""
    return CheckpointError(
        f"no quantization_config in config.json, and tensor '{name}' contains values other than -a, 0 and a, "
        'so its weights are not ternary; expected quant_method "bitnet": for master weights, add '
        'linear_class "autobitlinear" and quantization_mode "online", and list layers that stay float, such '
        f'as "{name.removesuffix(".weight")}" if only this one does, in modules_to_not_convert; to convert a '
        "float teacher to float16, use --float"
    )
