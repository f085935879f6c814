"""The interface of a packing: one way in which a checkpoint stores trits and their scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bitexport.checkpoint.reader import Checkpoint
from bitexport.errors import ScaleError
from bitexport.ternary import AnyTernary


@dataclass(frozen=True, slots=True)
class Scales:
    """What is known about a weight's scales before its trits are read; the output type depends on it.

    Attributes:
        group: how many neighbouring weights of a row share a scale; None if the whole tensor does.
        low, high: the smallest and the largest scale; None if they are not known yet.
        share: the fraction of groups that contain only -a, 0 and a, if the scales were recognised from float
            values; otherwise None.
        rounded: the number of groups that contain two magnitudes one step of their dtype apart, of which the
            more common one is the scale.
    """

    group: int | None = None
    low: float | None = None
    high: float | None = None
    share: float | None = None
    rounded: int = 0


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

    def stored_name(self, weight_name: str) -> str:
        """The name of the tensor that holds a weight's trits or values."""
        ...

    def holds(self, checkpoint: Checkpoint, weight_name: str) -> bool:
        """Whether a tensor that need not be ternary, such as the head, is stored in this packing.

        False if the packing stores plain floats, which do not show it.
        """
        ...

    def partners(self, weight_name: str) -> tuple[str, ...]:
        """Names of the tensors that belong to a weight; they may be in other shards."""
        ...

    def stored_shape(
        self, checkpoint: Checkpoint, weight_name: str, shape: tuple[int, int]
    ) -> tuple[int, ...]:
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

    def scales(self, checkpoint: Checkpoint, weight_name: str) -> Scales:
        """The groups of one weight that share a scale. Reads float weights that may have several.

        Raises:
            CheckpointError: a scale is invalid, or some groups of float weights have several magnitudes.
            UnsupportedError: the weights are ternary in a way that no GGUF type can hold.
        """
        ...

    def bias_factor(self, checkpoint: Checkpoint, weight_name: str) -> np.float32 | npt.NDArray[np.float32]:
        """The factor, or one for each row, by which transformers multiplies a ternary layer's stored bias.

        Raises:
            CheckpointError: the tensor that gives the factor is damaged.
        """
        ...

    def unpack(self, checkpoint: Checkpoint, weight_name: str) -> AnyTernary:
        """Read one weight, ``[out, in]``.

        Raises:
            CheckpointError: the tensor has a value that no ternary tensor can have.
        """
        ...


class PackingDefaults:
    """What most packings have in common: a weight under its own name, and a bias that is added unchanged."""

    def stored_name(self, weight_name: str) -> str:
        """The weight itself."""
        return weight_name

    def bias_factor(
        self,
        checkpoint: Checkpoint,  # noqa: ARG002
        weight_name: str,  # noqa: ARG002
    ) -> np.float32 | npt.NDArray[np.float32]:
        """1: the bias is added unchanged."""
        return np.float32(1)


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
