"""What a conversion will write: every tensor's source, target and type, checked before a byte is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bitexport.checkpoint.packings import (
    Packing,
    keeps_float,
    modules_to_not_convert,
    packing_of,
    quantization_config,
)
from bitexport.checkpoint.reader import FLOAT_DTYPES, Checkpoint
from bitexport.errors import CheckpointError, UnsupportedError
from bitexport.families import Claim, Family, Hyperparameters, Part, Role, family_of
from bitexport.gguf.dequantize import rows_per_chunk
from bitexport.gguf.names import TOKEN_EMBEDDING
from bitexport.gguf.types import (
    F16,
    F32,
    I2_S,
    MAX_I2_S_ROW,
    TERNARY_KINDS,
    TYPES,
    TensorType,
    alternatives,
    runs,
)
from bitexport.gguf.writer import TensorSpec

#: types of ternary tensors and of embeddings that ``convert`` writes, the default first.
TERNARY_TYPES = tuple(kind.name for kind in TERNARY_KINDS)
EMBED_TYPES = ("q6_k", "q5_k", "q4_k", "q8_0", "f16")

#: the metadata key that lists linear layers which are not ternary, where there are any.
KEPT_FLOAT_KEY = "bitexport.kept_float"

#: float16's largest number, and the mean magnitude below which its rounding grows.
MAX_F16 = 65504.0
MIN_F16_MEAN = 2.0**-13

#: weights of a linear layer that are looked at together.
SCANNED_WEIGHTS = 1 << 20


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the output.

    Attributes:
        claim: where it comes from.
        spec: what is written.
        ternary: whether it goes through a ``TernaryTensor``.
        source_bytes: bytes that it and its partners take in the checkpoint.
    """

    claim: Claim
    spec: TensorSpec
    ternary: bool
    source_bytes: int


@dataclass(frozen=True)
class Plan:
    """A whole conversion; see :func:`make_plan`. ``all_float``: the model is not ternary, no tensor of it."""

    checkpoint: Checkpoint
    family: Family
    numbers: Hyperparameters
    packing: Packing
    ternary_type: TensorType
    embed_type: TensorType
    tensors: tuple[PlannedTensor, ...]
    warnings: tuple[str, ...]
    all_float: bool = False

    @property
    def packing_name(self) -> str:
        """What the weights are, for a report."""
        return "float" if self.all_float else self.packing.name


def make_plan(checkpoint: Checkpoint, ternary_type: str, embed_type: str, *, all_float: bool = False) -> Plan:
    """Decide what is written, and check that the checkpoint holds it, all of it, and nothing else.

    Args:
        all_float: of a model that is not ternary; its linear layers are written as they are, in F16.

    Raises:
        CheckpointError: a tensor is missing, is claimed by nobody, or has a wrong shape or dtype; or a model
            is to be float and calls itself ternary.
        UnsupportedError: an unknown architecture or packing, or a type that cannot hold a tensor.
    """
    if all_float and quantization_config(checkpoint.config) is not None:
        raise CheckpointError(
            "config.json has a quantization_config, so the model is ternary; expected a float one: convert "
            "it without --float"
        )
    warnings: list[str] = []
    family = family_of(checkpoint.config, checkpoint.tensors)
    numbers = family.hyperparameters(checkpoint.config, checkpoint.tensors)
    packing = packing_of(checkpoint)
    if numbers.layers > len(checkpoint.tensors):
        raise CheckpointError(
            f"config.json: num_hidden_layers is {numbers.layers}, but there are only "
            f"{len(checkpoint.tensors)} tensors; "
            "config and weights are from different models"
        )
    claims = [claim for claim in family.claims(numbers) if not absent(checkpoint, claim)]
    if numbers.tied:
        claims += _head_beside_tied(checkpoint, family, numbers, warnings)
    _warn_of_head(checkpoint, numbers, warnings)
    tensors = tuple(
        _planned(checkpoint, packing, claim, TYPES[ternary_type], TYPES[embed_type], all_float, warnings)
        for claim in claims
    )
    if not all_float and not any(tensor.ternary for tensor in tensors):
        listed = modules_to_not_convert(checkpoint)
        raise CheckpointError(
            f"config.json: modules_to_not_convert {listed!r} keeps every linear layer in float, so no tensor "
            "is ternary; expected only those that are not, such as lm_head: correct it, or convert the model "
            "elsewhere"
        )
    _check_all_claimed(checkpoint, family, packing, tensors, numbers)
    warnings.extend(straddling_warnings([tensor.spec for tensor in tensors]))
    return Plan(
        checkpoint,
        family,
        numbers,
        packing,
        TYPES[ternary_type],
        TYPES[embed_type],
        tensors,
        tuple(warnings),
        all_float,
    )


def absent(checkpoint: Checkpoint, claim: Claim) -> bool:
    """Whether a claim is for the norm in front of a layer that is not quantized, which then has none."""
    return (
        claim.part is Part.INPUT_NORMS and claim.linear is not None and keeps_float(checkpoint, claim.linear)
    )


def straddling_warnings(specs: Sequence[TensorSpec]) -> list[str]:
    """A warning where I2_S tensors have rows that fill no whole number of blocks."""
    straddling = [spec for spec in specs if spec.type is I2_S and spec.shape[-1] % I2_S.block]
    if not straddling:
        return []
    sizes = ", ".join(map(str, sorted({spec.shape[-1] for spec in straddling})))
    return [
        f"{len(straddling)} I2_S tensors have rows of {sizes} weights, no multiple of {I2_S.block}: blocks "
        "straddle rows, which bitexport's runtime reads right and other I2_S runtimes do not"
    ]


def _planned(
    checkpoint: Checkpoint,
    packing: Packing,
    claim: Claim,
    ternary_type: TensorType,
    embed_type: TensorType,
    all_float: bool,
    warnings: list[str],
) -> PlannedTensor:
    ternary = claim.role is Role.TERNARY and not all_float and not keeps_float(checkpoint, claim.source)
    info = checkpoint.info(claim.source)
    stored = claim.shape
    if ternary:
        packing.check(checkpoint, claim.source)
        stored = packing.stored_shape((claim.shape[0], claim.shape[1]))
    elif info.dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            f"tensor '{claim.source}' has dtype {info.dtype}; expected {', '.join(FLOAT_DTYPES)}: save it as "
            "BF16"
        )
    if info.shape != stored:
        raise CheckpointError(
            f"tensor '{claim.source}' has shape {list(info.shape)}; config.json makes it {list(stored)}: "
            "config and weights are from different models"
        )
    kind = {Role.NORM: F32, Role.BIAS: F32, Role.EMBEDDING: embed_type, Role.TERNARY: ternary_type}[
        claim.role
    ]
    if claim.role is Role.TERNARY and not ternary:
        kind = _float_type(checkpoint, claim, warnings)
    _check_fits(claim, kind)
    partners = packing.partners(claim.source) if ternary else ()
    source_bytes = info.nbytes + sum(checkpoint.info(name).nbytes for name in partners)
    return PlannedTensor(claim, TensorSpec(claim.target, claim.shape, kind), ternary, source_bytes)


def _float_type(checkpoint: Checkpoint, claim: Claim, warnings: list[str]) -> TensorType:
    """F16 for a linear layer that stays float, or F32 where float16 is no good for it.

    That is where a value is too large, or where most are so small that their rounding is that of float16's
    subnormal numbers, 2^-25, and no longer the usual 2^-12 of the value. A few small values among larger ones
    do no harm. Reads the tensor, for the type stands in the header.
    """
    total, count, top = 0.0, 0, 0.0
    for piece in checkpoint.read_rows(claim.source, rows_per_chunk(claim.shape, SCANNED_WEIGHTS)):
        magnitudes = np.abs(piece)
        total += float(magnitudes.sum(dtype=np.float64))
        count += magnitudes.size
        top = max(top, float(magnitudes.max(initial=0)))
    mean = total / max(count, 1)
    if top <= MAX_F16 and (mean == 0 or mean >= MIN_F16_MEAN):
        return F16
    warnings.append(
        f"tensor '{claim.source}' stays float and is written as f32: float16 does not hold its values "
        f"(the largest is {top:g}, the mean magnitude {mean:g})"
    )
    return F32


def _check_fits(claim: Claim, kind: TensorType) -> None:
    if runs(kind, claim.shape):
        return
    embedding = claim.role is Role.EMBEDDING
    if embedding:
        names = [name for name in EMBED_TYPES if TYPES[name] is not kind and TYPES[name].fits(claim.shape)]
        fitting = f"--embed-type {' or '.join(names)}"
    else:
        fitting = f"--type {alternatives(claim.shape)}"
    raise UnsupportedError(
        f"tensor '{claim.source}' of shape {list(claim.shape)} cannot be {kind.name}, which needs "
        f"{needs(kind)}; use {fitting}"
    )


def needs(kind: TensorType) -> str:
    """What a layer must be like to be stored as ``kind``, for an error."""
    if kind is I2_S:
        return f"a multiple of {I2_S.block} weights in all, of 4 in a row, and rows of at most {MAX_I2_S_ROW}"
    return f"rows of a multiple of {kind.block} weights"


def _check_all_claimed(
    checkpoint: Checkpoint,
    family: Family,
    packing: Packing,
    tensors: tuple[PlannedTensor, ...],
    numbers: Hyperparameters,
) -> None:
    claimed = {tensor.claim.source for tensor in tensors}
    for tensor in tensors:
        if tensor.ternary:
            claimed.update(packing.partners(tensor.claim.source))
    if numbers.tied:
        claimed.add("lm_head.weight")
    for name in checkpoint.tensors:
        if name not in claimed and not family.is_derived(name):
            raise CheckpointError(
                f"tensor '{name}' {list(checkpoint.tensors[name].shape)} is nothing that {family.name} has; "
                "it would be lost: is the architecture in config.json right?"
            )


def _head_beside_tied(
    checkpoint: Checkpoint, family: Family, numbers: Hyperparameters, warnings: list[str]
) -> list[Claim]:
    """The head beside a tied embedding: kept where the two differ, as transformers does."""
    if "lm_head.weight" not in checkpoint.tensors:
        return []
    heads = [rule for rule in family.rules if rule.source == "lm_head.weight"]
    (embedding,) = [rule for rule in family.rules if rule.target == TOKEN_EMBEDDING]
    if checkpoint.same_bytes("lm_head.weight", embedding.source):
        return []
    if not heads:
        raise UnsupportedError(
            "tie_word_embeddings is true, but lm_head.weight is there and differs from the embeddings, and "
            f"the {family.gguf_architecture} graph has no output matrix of its own; expected a tied head"
        )
    (head,) = heads
    warnings.append(
        "tie_word_embeddings is true, but lm_head.weight is there and differs from the embeddings: it is "
        "written as the head"
    )
    sizes = numbers.dimensions()
    return [Claim(head.source, head.target, head.role, tuple(sizes[dim] for dim in head.shape))]


def _warn_of_head(checkpoint: Checkpoint, numbers: Hyperparameters, warnings: list[str]) -> None:
    listed = modules_to_not_convert(checkpoint)
    if listed is not None and not numbers.tied and not keeps_float(checkpoint, "lm_head.weight"):
        warnings.append(
            "modules_to_not_convert does not list lm_head: transformers would quantize the head as well; it "
            "stays float here"
        )
