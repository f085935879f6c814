"""Plans the conversion of a checkpoint: each tensor's source, target and type, checked before writing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bitexport.checkpoint.packings import (
    Packing,
    Scales,
    keeps_float,
    modules_to_not_convert,
    packing_of,
    quantization_config,
)
from bitexport.checkpoint.packings.mlx_affine import without_config
from bitexport.checkpoint.packings.packed_multiply import PackedMultiply
from bitexport.checkpoint.reader import FLOAT_DTYPES, Checkpoint
from bitexport.checkpoint.safetensors import TensorInfo
from bitexport.convert.choices import check_fits, straddling_warnings, ternary_kind
from bitexport.convert.embeddings import embedding_type
from bitexport.convert.source import FLOAT_PACKING, PlannedTensor, main_type, rounded_warnings
from bitexport.errors import CheckpointError, UnsupportedError
from bitexport.families import BITNET, Claim, Family, Hyperparameters, Part, Role, family_of
from bitexport.gguf.dequantize import rows_per_chunk
from bitexport.gguf.names import OUTPUT_HEAD, TOKEN_EMBEDDING
from bitexport.gguf.types import F16, F32, I2_S, TensorType, runs
from bitexport.gguf.writer import TensorSpec
from bitexport.progress import Progress, ProgressEvent, ignore, patient
from bitexport.ternary import TernaryTensor

HEAD = "lm_head.weight"

#: The warning about a float head that transformers would quantize.
HEAD_STAYS_FLOAT = (
    "modules_to_not_convert does not list lm_head: transformers would quantize the head as well; it stays "
    "float here"
)

#: Float16's largest number, and the mean magnitude below which its rounding error grows.
MAX_F16 = 65504.0
MIN_F16_MEAN = 2.0**-13

#: Weights of a linear layer that are in memory at once while its float type is chosen.
SCANNED_WEIGHTS = 1 << 20


@dataclass(frozen=True)
class Plan:
    """The conversion of a checkpoint, as :func:`make_plan` decides it.

    Attributes:
        numbers: the model's hyper-parameters.
        type: the type of ternary tensors that was asked for, which may be ``auto``.
        ternary_type: the output type of most ternary tensors.
        embed_type: the output type of the embeddings and the head.
        tensors: in the order of the output.
        warnings: what a user should know.
        all_float: whether the model is a float model, in which no tensor is ternary.
    """

    checkpoint: Checkpoint
    family: Family
    numbers: Hyperparameters
    packing: Packing
    type: str
    ternary_type: TensorType
    embed_type: TensorType
    tensors: tuple[PlannedTensor[Claim], ...]
    warnings: tuple[str, ...]
    all_float: bool = False

    @property
    def packing_name(self) -> str:
        """The packing of the weights as reports name it."""
        return FLOAT_PACKING if self.all_float else self.packing.name


def make_plan(
    checkpoint: Checkpoint,
    type: str,
    embed_type: str,
    *,
    all_float: bool = False,
    progress: Progress = ignore,
) -> Plan:
    """Decide what to write, and check that the checkpoint has exactly the tensors for it.

    Float weights that may be ternary already are read once here, because the type of a tensor is written
    before its data and depends on the groups that share a scale.

    Args:
        type: one of :data:`~bitexport.convert.choices.TYPE_CHOICES`.
        all_float: the model is not ternary; its linear layers are written as F16.
        progress: called if this takes more than a moment, in bytes of the source.

    Raises:
        CheckpointError: a tensor is missing, is claimed by no rule, or has a wrong shape or dtype; or
            ``all_float`` is set for a model that calls itself ternary.
        UnsupportedError: an unknown architecture or packing, or a type that cannot hold a tensor.
    """
    if all_float:
        check_float(checkpoint)
    warnings: list[str] = []
    family = family_of(checkpoint.config, checkpoint.tensors)
    numbers = family.hyperparameters(checkpoint.config, checkpoint.tensors)
    packing = packing_of(checkpoint)
    _check_number_of_layers(checkpoint, numbers)
    claims = [claim for claim in family.claims(numbers) if not absent(checkpoint, claim)]
    if numbers.tied:
        claims += _separate_head(checkpoint, family, numbers, warnings)
    _warn_about_head(checkpoint, packing, numbers, warnings)
    _warn_about_sub_norms(family, numbers, warnings)
    planned: list[PlannedTensor[Claim]] = []
    report, done = patient(progress), 0
    for claim in claims:
        report(ProgressEvent(done, checkpoint.nbytes, "B", f"looking for scales: {claim.source}"))
        planned.append(_planned(checkpoint, packing, claim, (type, embed_type), all_float, warnings))
        done += planned[-1].source_bytes
    tensors = tuple(planned)
    if not all_float:
        _check_some_ternary(checkpoint, tensors)
    _check_all_claimed(checkpoint, family, packing, tensors, numbers)
    warnings.extend(straddling_warnings(tensor.spec for tensor in tensors))
    warnings.extend(rounded_warnings(tensors))
    return Plan(
        checkpoint,
        family,
        numbers,
        packing,
        type,
        main_type([tensor for tensor in tensors if tensor.origin.role is Role.TERNARY]) or F16,
        next(tensor.spec.type for tensor in tensors if tensor.spec.name == TOKEN_EMBEDDING),
        tensors,
        tuple(warnings),
        all_float,
    )


def check_float(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError if config.json or the architecture says that the model is ternary."""
    if quantization_config(checkpoint.config) is None:
        return
    why = "config.json has a quantization_config, so the model is ternary"
    if "quantization_config" not in checkpoint.config:
        why = "the architecture in config.json is ternary by definition"
    raise CheckpointError(f"{why}; expected a float one: convert it without --float")


def _check_number_of_layers(checkpoint: Checkpoint, numbers: Hyperparameters) -> None:
    if numbers.layers > len(checkpoint.tensors):
        raise CheckpointError(
            f"config.json: num_hidden_layers is {numbers.layers}, but there are only "
            f"{len(checkpoint.tensors)} tensors; config and weights are from different models"
        )


def _check_some_ternary(checkpoint: Checkpoint, tensors: Sequence[PlannedTensor[Claim]]) -> None:
    if not any(tensor.ternary for tensor in tensors if tensor.origin.role is Role.TERNARY):
        raise CheckpointError(
            f"config.json: modules_to_not_convert {modules_to_not_convert(checkpoint)!r} keeps every linear "
            "layer in float, so no tensor is ternary; expected only layers that are not ternary, such as "
            "lm_head: correct it, or convert the model elsewhere"
        )


def absent(checkpoint: Checkpoint, claim: Claim) -> bool:
    """Whether a claim is for the norm in front of a layer that is not quantized, which then has none."""
    return (
        claim.part is Part.INPUT_NORMS and claim.linear is not None and keeps_float(checkpoint, claim.linear)
    )


def _planned(
    checkpoint: Checkpoint,
    packing: Packing,
    claim: Claim,
    types: tuple[str, str],
    all_float: bool,
    warnings: list[str],
) -> PlannedTensor[Claim]:
    """Plan one tensor of the output, after checking that its dtype and shape are those of its claim."""
    ternary = claim.role is Role.TERNARY and not all_float and not keeps_float(checkpoint, claim.source)
    packed = claim.role is Role.EMBEDDING and packing.holds(checkpoint, claim.source)
    # a packed head is a linear layer like any other; packed embeddings become floats
    ternary = ternary or (packed and claim.target == OUTPUT_HEAD)
    info = checkpoint.info(packing.stored_name(claim.source) if ternary or packed else claim.source)
    stored: tuple[int, ...] = claim.shape
    if ternary or packed:
        packing.check(checkpoint, claim.source)
        stored = packing.stored_shape(checkpoint, claim.source, (claim.shape[0], claim.shape[1]))
    elif info.dtype not in FLOAT_DTYPES:
        raise _not_float(claim, info)
    if info.shape != stored:
        raise CheckpointError(
            f"tensor '{info.name}' has shape {list(info.shape)}; config.json implies {list(stored)}: "
            "config and weights are from different models"
        )
    scales = None
    embedding = claim.role is Role.EMBEDDING
    if ternary:
        scales = _scales(checkpoint, packing, claim)
        kind = ternary_kind(claim.source, claim.shape, scales, types[0])
    elif claim.role is Role.TERNARY:
        kind = float_type(checkpoint, claim, warnings)
    elif embedding:
        kind, scales = embedding_type(
            checkpoint, packing, claim.source, claim.shape, types[1], warnings, look=not all_float
        )
        ternary = scales is not None
    else:
        kind = F32
    check_fits(claim.source, claim.shape, kind, embedding=embedding and not ternary, target=claim.target)
    if claim.role is Role.BIAS and not all_float:
        warnings += _bias_warning(checkpoint, packing, claim)
    partners = packing.partners(claim.source) if ternary or packed else ()
    source_bytes = info.nbytes + sum(checkpoint.info(name).nbytes for name in partners)
    return PlannedTensor(claim, TensorSpec(claim.target, claim.shape, kind), ternary, source_bytes, scales)


def _not_float(claim: Claim, info: TensorInfo) -> CheckpointError:
    """The error to raise for a tensor that is to stay float but is not one."""
    if info.dtype == "U32":
        return without_config(info.name)
    if claim.role is Role.TERNARY and info.dtype == "U8":
        return CheckpointError(
            f"tensor '{info.name}' has dtype U8, so it is packed, but modules_to_not_convert in "
            "quantization_config keeps it in float; expected only float layers there: remove it from the list"
        )
    return CheckpointError(
        f"tensor '{info.name}' has dtype {info.dtype}; expected {', '.join(FLOAT_DTYPES)}: save it as BF16"
    )


def _bias_warning(checkpoint: Checkpoint, packing: Packing, bias: Claim) -> list[str]:
    """A warning about the bias of a layer that transformers could not run, so that its meaning is a guess."""
    if packing.name != PackedMultiply.name or bias.linear is None or keeps_float(checkpoint, bias.linear):
        return []
    shape = checkpoint.info(packing.partners(bias.linear)[0]).shape
    if len(shape) < 2 or shape == (1, 1):
        return []
    how = "is added unchanged" if shape[1] > 1 else "is multiplied by them, as transformers does for [out]"
    return [
        f"tensor '{bias.source}' {how}: its layer multiplies by scales of shape {list(shape)}, which "
        "transformers cannot run; compare the output with that of the tool that saved it"
    ]


def _scales(checkpoint: Checkpoint, packing: Packing, claim: Claim) -> Scales:
    """What a ternary tensor's type depends on."""
    scales = packing.scales(checkpoint, claim.source)
    if scales.low is None and not runs(I2_S, claim.shape):
        # rare: I2_S holds any scale of master weights, other types may not
        weights = packing.unpack(checkpoint, claim.source)
        assert isinstance(weights, TernaryTensor)
        scales = replace(scales, low=float(weights.scale), high=float(weights.scale))
    return scales


def float_type(checkpoint: Checkpoint, claim: Claim, warnings: list[str]) -> TensorType:
    """F16 for a linear layer that stays float, or F32 if float16 would change it too much.

    It would if a value is too large, or if most values are so small that they become subnormal: their
    rounding error is up to 2^-25, instead of 2^-11 of the value. A few small values among larger ones do no
    harm. Reads the tensor, because the type is written before the data.
    """
    total = 0.0
    count = 0
    top = 0.0
    for piece in checkpoint.read_rows(claim.source, rows_per_chunk(claim.shape, SCANNED_WEIGHTS)):
        magnitudes = np.abs(piece)
        total += float(magnitudes.sum(dtype=np.float64))
        count += magnitudes.size
        top = max(top, float(magnitudes.max(initial=0)))
    mean = total / max(count, 1)
    if top <= MAX_F16 and (mean == 0 or mean >= MIN_F16_MEAN):
        return F16
    warnings.append(
        f"tensor '{claim.source}' stays float and is written as f32: float16 cannot hold its values "
        f"(the largest is {top:g}, the mean magnitude {mean:g})"
    )
    return F32


def _check_all_claimed(
    checkpoint: Checkpoint,
    family: Family,
    packing: Packing,
    tensors: Sequence[PlannedTensor[Claim]],
    numbers: Hyperparameters,
) -> None:
    claimed = {tensor.origin.source for tensor in tensors}
    for tensor in tensors:
        source = tensor.origin.source
        if tensor.ternary or (tensor.origin.role is Role.EMBEDDING and packing.holds(checkpoint, source)):
            claimed.update((packing.stored_name(source), *packing.partners(source)))
    if numbers.tied:
        claimed.update((HEAD, packing.stored_name(HEAD), *packing.partners(HEAD)))
    for name in checkpoint.tensors:
        if name not in claimed and not family.is_derived(name):
            raise CheckpointError(
                f"tensor '{name}' {list(checkpoint.tensors[name].shape)} does not belong to {family.name} "
                "and would be dropped; is the architecture in config.json right?"
            )


def _separate_head(
    checkpoint: Checkpoint, family: Family, numbers: Hyperparameters, warnings: list[str]
) -> list[Claim]:
    """The separate head that a tied model may have all the same, if it differs from the embedding.

    transformers keeps such a head as well.
    """
    if HEAD not in checkpoint.tensors:
        return []
    heads = [rule for rule in family.rules if rule.source == HEAD]
    (embedding,) = [rule for rule in family.rules if rule.target == TOKEN_EMBEDDING]
    if checkpoint.same_bytes(HEAD, embedding.source):
        return []
    if not heads:
        raise UnsupportedError(
            "tie_word_embeddings is true, but lm_head.weight is present and differs from the embeddings, and "
            f"the {family.gguf_architecture} graph has no separate output matrix; expected a tied head"
        )
    (head,) = heads
    warnings.append(
        "tie_word_embeddings is true, but lm_head.weight is present and differs from the embeddings: it is "
        "written as the head"
    )
    sizes = numbers.dimensions()
    return [Claim(head.source, head.target, head.role, tuple(sizes[dim] for dim in head.shape))]


def _warn_about_sub_norms(family: Family, numbers: Hyperparameters, warnings: list[str]) -> None:
    """transformers would give such a BitNet norms of ones, which are not the same as none."""
    if family is BITNET and Part.SUB_NORMS not in numbers.parts:
        warnings.append(
            "no attn_sub_norm and ffn_sub_norm: converted as a BitNet without SubLN; if the model was "
            "trained with it, these tensors are lost and the checkpoint must be saved again"
        )


def _warn_about_head(
    checkpoint: Checkpoint, packing: Packing, numbers: Hyperparameters, warnings: list[str]
) -> None:
    listed = modules_to_not_convert(checkpoint)
    if packing.holds(checkpoint, HEAD):
        return  # it is ternary in the output as well
    if listed is not None and not numbers.tied and not keeps_float(checkpoint, HEAD):
        warnings.append(HEAD_STAYS_FLOAT)
