"""The interface of a packing: one way in which a checkpoint stores trits and their scale."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from bitexport.checkpoint.reader import Checkpoint
from bitexport.errors import ScaleError
from bitexport.ternary import TernaryTensor


class Packing(Protocol):
    """One way of storing ternary tensors.

    Attributes:
        name: the name in reports.
        recognised_by: how it is recognised, for the table of supported packings.
        meaning: how a weight's value is computed, for the same table.
    """

    name: str
    recognised_by: str
    meaning: str

    def partners(self, weight_name: str) -> tuple[str, ...]:
        """Names of the tensors that belong to a weight; they may be in other shards."""
        ...

    def stored_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The shape of the stored tensor for a weight of ``shape`` ``[out, in]``.

        Raises:
            UnsupportedError: the packing cannot store such a weight.
        """
        ...

    def check(self, checkpoint: Checkpoint, weight_name: str) -> None:
        """Check that dtype and partners are what this packing expects, without reading all of the weight.

        Raises:
            CheckpointError: they are not.
        """
        ...

    def bias_factor(self, checkpoint: Checkpoint, weight_name: str) -> np.float32:
        """The factor by which transformers multiplies the stored bias of a ternary layer.

        Raises:
            CheckpointError: the tensor that gives the factor is damaged.
        """
        ...

    def unpack(self, checkpoint: Checkpoint, weight_name: str) -> TernaryTensor:
        """Read one weight, ``[out, in]``.

        Raises:
            CheckpointError: the tensor has a value that no ternary tensor can have.
        """
        ...


def checked_scale(value: float | np.float32, tensor_name: str) -> np.float32:
    """``value`` as the scale of a ternary tensor.

    Raises:
        ScaleError: it is zero, negative, NaN or infinite, or cannot be inverted.
    """
    scale = np.float32(value)
    if not np.isfinite(scale) or not scale > 0:
        raise ScaleError(
            f"tensor '{tensor_name}' gives a scale of {scale}; expected a positive, finite number: "
            "the checkpoint is damaged or its training run diverged"
        )
    return scale
