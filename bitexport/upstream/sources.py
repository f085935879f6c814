"""The tensors of a checkpoint as a converter sees them: weights in their logical shape, without scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitexport.checkpoint import Checkpoint
from bitexport.checkpoint.packings import Packing, keeps_float, packing_of
from bitexport.checkpoint.packings.master import MasterWeights
from bitexport.checkpoint.packings.words import PER_WORD
from bitexport.checkpoint.reader import FLOAT_DTYPES
from bitexport.errors import CheckpointError, UnsupportedError

#: How many trits a byte holds where rows are packed into one.
PER_BYTE = 4


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """One tensor of the checkpoint.

    Attributes:
        name: its name.
        shape: the shape of its values, outermost first.
        packed: whether it is stored as trits.
    """

    name: str
    shape: tuple[int, ...]
    packed: bool


def source_tensors(checkpoint: Checkpoint) -> dict[str, SourceTensor]:
    """The tensors that a converter is given, by name: all of them, except for those that packed weights need.

    Raises:
        CheckpointError, UnsupportedError: a packed weight is not what its packing expects, or a tensor that
            is not packed has a dtype that is not a float's.
    """
    packing = packing_of(checkpoint)
    packed = packed_weights(checkpoint, packing)
    partners = {partner for name in packed.values() for partner in packing.partners(name)}
    found = {}
    for stored, info in checkpoint.tensors.items():
        if stored in partners:
            continue
        if stored in packed:
            name = packed[stored]
            packing.check(checkpoint, name)
            found[name] = SourceTensor(name, logical_shape(checkpoint, packing, name), True)
            continue
        if info.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"tensor '{stored}' has dtype {info.dtype}; expected {', '.join(FLOAT_DTYPES)}, or packed "
                "weights with the quantization_config that says so: save it as BF16"
            )
        found[stored] = SourceTensor(stored, tuple(info.shape), False)
    return found


def packed_weights(checkpoint: Checkpoint, packing: Packing) -> dict[str, str]:
    """The weights that are stored as trits with scales beside them, by the names of the stored tensors."""
    found = {}
    for stored in checkpoint.tensors:
        name = stored.removesuffix("_packed")
        if (
            name.endswith(".weight")
            and packing.holds(checkpoint, name)
            and packing.stored_name(name) == stored
        ):
            found[stored] = name
    return found


def logical_shape(checkpoint: Checkpoint, packing: Packing, name: str) -> tuple[int, ...]:
    """The shape ``[out, in]`` of a packed weight.

    Raises:
        UnsupportedError: the packing stores no weight in that shape.
    """
    stored = tuple(checkpoint.info(packing.stored_name(name)).shape)
    if len(stored) == 2:
        out, columns = stored
        for shape in ((out * PER_BYTE, columns), (out, columns * PER_WORD), (out, columns)):
            try:
                if packing.stored_shape(checkpoint, name, shape) == stored:
                    return shape
            except UnsupportedError:
                continue
    raise UnsupportedError(
        f"tensor '{name}' has shape {list(stored)}, but has scales as packed weights do; expected a matrix"
    )


def real_values(
    checkpoint: Checkpoint, source: SourceTensor, *, quantized: bool, bias_of: Mapping[str, str]
) -> npt.NDArray[np.float32]:
    """The values with which PyTorch computes, as float32.

    Args:
        quantized: whether master weights are quantized.
        bias_of: the weights of biases, by the biases' names.
    """
    packing = packing_of(checkpoint)
    name = source.name
    if source.packed or (quantized and packing.name == MasterWeights.name):
        return packing.unpack(checkpoint, name).dequantize()
    values: npt.NDArray[np.float32] = checkpoint.read(name)
    weight = bias_of.get(name)
    if weight is not None and not keeps_float(checkpoint, weight):
        return values * packing.bias_factor(checkpoint, weight)
    return values
