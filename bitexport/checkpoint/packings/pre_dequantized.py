"""Pre-dequantized weights: float tensors whose only values are -a, 0 and a, with one ``a`` or several.

The trit is the sign and the scale is exactly ``a``: one for the tensor, for each row, or for each group of
neighbouring weights in a row. See float_ternary.py.
"""

from __future__ import annotations

import numpy as np

from bitexport.checkpoint.packings.base import Scales
from bitexport.checkpoint.packings.float_ternary import already_ternary, find_scales, rules_out_ternary
from bitexport.checkpoint.reader import FLOAT_DTYPES, Checkpoint
from bitexport.errors import CheckpointError
from bitexport.ternary import AnyTernary


class PreDequantized:
    """Float weights that are already ternary."""

    name = "pre-dequantized"
    recognised_by = (
        "float tensors whose only values are -a, 0 and a, with an a per tensor, per row, or per group of "
        "256, 128, 64 or 32 columns"
    )
    meaning = "sign * a"

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
        if rules_out_ternary(checkpoint, weight_name):
            raise _not_ternary(weight_name)

    def bias_factor(self, checkpoint: Checkpoint, weight_name: str) -> np.float32:  # noqa: ARG002
        """1: the bias is added unchanged."""
        return np.float32(1)

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
        'linear_class "autobitlinear" and quantization_mode "online", and list layers that stay float in '
        "modules_to_not_convert; to convert a float teacher to float16, use --float"
    )
