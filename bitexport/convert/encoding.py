"""From a checkpoint's tensor to the bytes of a GGUF tensor, in pieces.

Embeddings, which are the largest, are never whole in memory. A ternary tensor is: its scale follows from all
of it. So is a float one whose rows are put into another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bitexport.checkpoint.packings import keeps_float
from bitexport.convert.plan import Plan, PlannedTensor
from bitexport.errors import UnsupportedError
from bitexport.families import Claim, Role
from bitexport.gguf.dequantize import rows_per_chunk
from bitexport.gguf.packers import PACKERS
from bitexport.gguf.types import F16, F32
from bitexport.gguf.writer import TensorSpec
from bitexport.health import Health
from bitexport.ternary import TernaryTensor


@dataclass(frozen=True, slots=True)
class TernaryFacts:
    """What was seen of a ternary tensor while it was converted.

    Attributes:
        weights, zeros: how many there are.
        scale: its scale, before the output type rounds it.
        rounding: how far the written scale is from it, as a fraction.
        dequantized: see :class:`~bitexport.ternary.TernaryTensor`.
    """

    weights: int
    zeros: int
    scale: float
    rounding: float
    dequantized: bool = False


@dataclass(slots=True)
class FloatFacts:
    """What was seen of a tensor that is not ternary.

    Attributes:
        weights: how many there are.
        flushed: how many are too small for float16, which they are written as, and became zero.
    """

    weights: int = 0
    flushed: int = 0


def encode(
    plan: Plan,
    tensor: PlannedTensor,
    learned: Callable[[TernaryFacts | FloatFacts], None],
    health: Health,
) -> Iterator[npt.NDArray[Any]]:
    """The bytes of one tensor, in pieces.

    Args:
        learned: called once, when all is known; for a tensor that is not ternary after its last piece.
        health: shown every tensor as the checkpoint has it.

    Raises:
        CheckpointError: a value that cannot be.
        UnsupportedError: a value that the output type cannot hold.
    """
    order = plan.family.row_order(tensor.claim, plan.numbers)
    if tensor.ternary:
        weights = plan.packing.unpack(plan.checkpoint, tensor.claim.source)
        health.ternary(tensor.claim.source, weights)
        if order is not None:
            weights = replace(weights, trits=weights.trits[order])
        yield from _encode_ternary(tensor.spec, weights, learned)
        return
    facts = FloatFacts()
    if order is not None or tensor.claim.role is Role.BIAS:
        values = plan.checkpoint.read(tensor.claim.source)
        health.floats(tensor.claim.source, values)
        values = values * bias_factor(plan, tensor.claim) if tensor.claim.role is Role.BIAS else values
        yield encode_float(tensor.spec, values if order is None else values[order], facts)
    else:
        rows = rows_per_chunk(tensor.spec.shape)
        for piece in plan.checkpoint.read_rows(tensor.claim.source, rows):
            health.floats(tensor.claim.source, piece)
            yield encode_float(tensor.spec, piece, facts)
    learned(facts)


def bias_factor(plan: Plan, bias: Claim) -> np.float32:
    """What a bias is multiplied with on its way into the file, see ``Packing.bias_factor``."""
    if bias.linear is None or keeps_float(plan.checkpoint, bias.linear):
        return np.float32(1)
    return plan.packing.bias_factor(plan.checkpoint, bias.linear)


def _encode_ternary(
    spec: TensorSpec, weights: TernaryTensor, learned: Callable[[TernaryFacts | FloatFacts], None]
) -> Iterator[npt.NDArray[Any]]:
    packer = PACKERS[spec.type.name]
    try:
        yield packer.pack(weights)
    except UnsupportedError as error:
        raise UnsupportedError(f"tensor '{spec.name}': {error}") from error
    size = weights.trits.size
    learned(
        TernaryFacts(
            weights=size,
            zeros=size - int(np.count_nonzero(weights.trits)),
            scale=float(weights.scale),
            rounding=packer.rounding(weights),
            dequantized=weights.dequantized,
        )
    )


def encode_float(spec: TensorSpec, values: npt.NDArray[np.float32], facts: FloatFacts) -> npt.NDArray[Any]:
    """Some rows of a float tensor as bytes of the type of ``spec``; ``facts`` is added to.

    Raises:
        UnsupportedError: a value that float16 cannot hold.
    """
    facts.weights += values.size
    if spec.type is F32:
        return values
    if spec.type is F16:
        with np.errstate(over="ignore"):
            halves = values.astype("<f2")
        facts.flushed += int(np.count_nonzero(values) - np.count_nonzero(halves))
        if not np.isfinite(halves.sum(dtype=np.float64)):
            worst = float(np.abs(values).max())
            # linear layers are F32 where this could happen: see the plan
            raise UnsupportedError(
                f"tensor '{spec.name}' holds {worst:g}, more than float16's 65504; use another --embed-type"
            )
        return halves
    # imported here: only the k-quants need our native libraries
    from bitexport.runtime.ggml import quantize

    return quantize(np.ascontiguousarray(values), spec.type.name)
