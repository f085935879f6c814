"""The tensors of a checkpoint as a converter sees them: weights in their logical shape, without scales."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitexport.checkpoint import Checkpoint
from bitexport.checkpoint.packings import Packing, keeps_float, packing_of
from bitexport.checkpoint.packings.master import MasterWeights
from bitexport.checkpoint.reader import FLOAT_DTYPES
from bitexport.errors import CheckpointError, UnsupportedError

#: How many weights a packed byte holds, along the rows or along the columns.
PACKED_ROWS = 4


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
    packed = set(packed_weights(checkpoint, packing))
    partners = {partner for name in packed for partner in packing.partners(name)}
    found = {}
    for name, info in checkpoint.tensors.items():
        if name in partners:
            continue
        if name in packed:
            packing.check(checkpoint, name)
            found[name] = SourceTensor(name, logical_shape(checkpoint, packing, name), True)
            continue
        if info.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"tensor '{name}' has dtype {info.dtype}; expected {', '.join(FLOAT_DTYPES)}, or packed "
                "weights with the quantization_config that says so: save it as BF16"
            )
        found[name] = SourceTensor(name, tuple(info.shape), False)
    return found


def packed_weights(checkpoint: Checkpoint, packing: Packing) -> Iterator[str]:
    """The names of the weights that are stored as trits with scales beside them."""
    for name in checkpoint.tensors:
        partners = packing.partners(name) if name.endswith(".weight") else ()
        if partners and any(partner in checkpoint.tensors for partner in partners):
            yield name


def logical_shape(checkpoint: Checkpoint, packing: Packing, name: str) -> tuple[int, ...]:
    """The shape ``[out, in]`` of a packed weight.

    Raises:
        UnsupportedError: the packing stores no weight in that shape.
    """
    stored = tuple(checkpoint.info(name).shape)
    if len(stored) == 2:
        out, columns = stored
        for shape in ((out * PACKED_ROWS, columns), (out, columns * PACKED_ROWS), (out, columns)):
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
