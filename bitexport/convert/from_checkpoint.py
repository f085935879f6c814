"""A checkpoint folder as the source of a conversion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitexport.checkpoint import Checkpoint
from bitexport.checkpoint.block_diffusion import diffusion_settings
from bitexport.checkpoint.packings import keeps_float
from bitexport.checkpoint.packings.master import MasterWeights
from bitexport.checkpoint.sentence_transformers import EmbeddingSettings
from bitexport.convert.embedding_model import embedding_settings
from bitexport.convert.encoding import TensorStatistics, encode_float, encode_ternary
from bitexport.convert.opening import adapter_warnings, merged_adapter
from bitexport.convert.plan import Plan, make_plan
from bitexport.convert.source import PlannedTensor, SourceSummary, model_name, own_keys, source_keys
from bitexport.convert.tokenizer_check import check_tokenizer
from bitexport.errors import OutputError, UnsupportedError
from bitexport.families import Claim, Role
from bitexport.gguf.dequantize import rows_per_chunk
from bitexport.gguf.diffusion_settings import diffusion_metadata
from bitexport.gguf.embedding_settings import settings_metadata
from bitexport.gguf.writer import MetadataValue
from bitexport.health import Health, check_trainer_state, check_vocabulary
from bitexport.progress import Progress, ignore
from bitexport.ternary import dequantized_rows, reordered
from bitexport.tokenizer.vocabulary import Vocabulary, read_vocabulary

#: The fraction of a float tensor's values that may become zero in float16 without a warning: every large
#: tensor has a few values that are almost zero.
MAX_FLUSHED = 1e-3


def check_outside(checkpoint: Checkpoint, output: Path, target: Path) -> None:
    """Raise OutputError if the output would destroy the weights, or another file of the checkpoint.

    Args:
        output: as the user gave it.
        target: the file that would be written, links followed.
    """
    # the shards of a checkpoint in Hugging Face's cache are links to files elsewhere
    shards = {info.shard.resolve() for info in checkpoint.tensors.values()}
    inside = target.is_relative_to(checkpoint.path.resolve()) and target.suffix != ".gguf"
    if target in shards or inside:
        raise OutputError(
            f"{output} is inside the checkpoint being converted and is not a .gguf file, so writing it "
            "could destroy the checkpoint; expected another folder, or a name that ends in .gguf"
        )


def plan_checkpoint(
    checkpoint: Checkpoint,
    type: str,
    embed_type: str,
    pre_tokenizer: str | None,
    *,
    all_float: bool,
    pooling: str | None = None,
    progress: Progress = ignore,
) -> CheckpointSource:
    """Plan the conversion of a checkpoint; arguments as in :func:`bitexport.convert.convert`.

    Raises:
        CheckpointError, UnsupportedError: see :func:`~bitexport.convert.plan.make_plan` and
            :func:`~bitexport.convert.embedding_model.embedding_settings`.
        TokenizerError: see :func:`~bitexport.tokenizer.vocabulary.read_vocabulary`.
    """
    plan = make_plan(checkpoint, type, embed_type, all_float=all_float, progress=progress)
    warnings: list[str] = []
    embedding = embedding_settings(checkpoint, plan.numbers.parts, pooling, warnings)
    vocabulary = read_vocabulary(checkpoint.path, plan.numbers.vocab_size, pre_tokenizer)
    return CheckpointSource(plan, vocabulary, embedding, warnings)


class CheckpointSource:
    """A :class:`~bitexport.convert.source.Source` that reads one tensor of the checkpoint at a time."""

    def __init__(
        self,
        plan: Plan,
        vocabulary: Vocabulary,
        embedding: EmbeddingSettings | None = None,
        warnings: Sequence[str] = (),
    ) -> None:
        self.plan = plan
        self.vocabulary = vocabulary
        self.architecture = plan.family.gguf_architecture
        self.metadata: Mapping[str, MetadataValue] = _metadata(plan, vocabulary)
        if embedding is not None:
            self.metadata = {**self.metadata, **settings_metadata(self.architecture, embedding)}
        self.tensors: Sequence[PlannedTensor[Claim]] = plan.tensors
        self.extra_tensors: Mapping[str, npt.NDArray[np.float32]] = plan.family.extra_tensors(plan.numbers)
        self.warnings: Sequence[str] = (
            *adapter_warnings(plan.checkpoint, all_float=plan.all_float),
            *plan.warnings,
            *vocabulary.warnings,
            *warnings,
        )
        self.summary = SourceSummary(
            input_bytes=plan.checkpoint.nbytes,
            packing=plan.packing_name,
            type=plan.type,
            embed_type=plan.embed_type.name,
            tokenizer=vocabulary.model,
            pre_tokenizer=vocabulary.pre,
            tokens=len(vocabulary.tokens),
            padded_tokens=vocabulary.padded,
            adapter=merged_adapter(plan.checkpoint),
            embedding=embedding,
        )
        self.health = Health()
        check_trainer_state(self.health, plan.checkpoint.path)
        check_vocabulary(
            self.health,
            ids=plan.numbers.vocab_size,
            tokens=len(vocabulary.tokens) - vocabulary.padded,
            embeddings=None,
        )

    def encode_tensor(
        self, tensor: PlannedTensor[Claim], statistics: TensorStatistics
    ) -> Iterator[npt.NDArray[Any]]:
        """The bytes of one tensor, in pieces.

        Embeddings, the largest tensors, are read some rows at a time. A ternary tensor is read completely,
        because its scale depends on all of its weights, and so is a float tensor whose rows are reordered.

        Raises:
            CheckpointError: a value is invalid.
            UnsupportedError: the output type cannot hold a value.
        """
        if tensor.ternary:
            yield self._encode_ternary(tensor, statistics)
            return
        for values in float_rows(self.plan, tensor):
            self.health.floats(tensor.origin.source, values)
            yield encode_float(tensor.spec, values, statistics)

    def _encode_ternary(
        self, tensor: PlannedTensor[Claim], statistics: TensorStatistics
    ) -> npt.NDArray[np.uint8]:
        plan = self.plan
        claim = tensor.origin
        weights = plan.packing.unpack(plan.checkpoint, claim.source)
        self.health.ternary(claim.source, weights)
        order = plan.family.row_order(claim, plan.numbers)
        if order is not None:
            weights = reordered(weights, order)
        try:
            return encode_ternary(tensor.spec, weights, statistics)
        except UnsupportedError as error:
            raise UnsupportedError(f"tensor '{tensor.spec.name}': {error}") from error

    def check_written(self, path: Path) -> list[str]:
        """Compare the file's tokenizer with the checkpoint's."""
        return check_tokenizer(path, self.plan.checkpoint.path, self.vocabulary)

    def final_warnings(self, statistics: Mapping[str, TensorStatistics]) -> list[str]:
        """Warnings about values too small for float16, and about master weights that are already ternary."""
        found = []
        for tensor in self.tensors:
            seen = statistics[tensor.spec.name]
            if seen.flushed > seen.weights * MAX_FLUSHED:
                found.append(
                    f"tensor '{tensor.origin.source}': {seen.flushed} of {seen.weights} values are too small "
                    "for float16 and became zero; is its scale right?"
                )
        if self.plan.packing.name == MasterWeights.name:
            found += already_ternary_warning(
                [t for t in self.tensors if t.ternary and t.origin.role is Role.TERNARY], statistics
            )
        return found


def float_rows(plan: Plan, tensor: PlannedTensor[Claim]) -> Iterator[npt.NDArray[np.float32]]:
    """The values of a float tensor as they are written, some rows at a time.

    Raises:
        CheckpointError: a value is NaN or infinite.
    """
    claim = tensor.origin
    order = plan.family.row_order(claim, plan.numbers)
    if claim.role is Role.EMBEDDING and plan.packing.holds(plan.checkpoint, claim.source):
        yield from dequantized_rows(
            plan.packing.unpack(plan.checkpoint, claim.source), rows_per_chunk(claim.shape)
        )
        return
    if order is None and claim.role is not Role.BIAS:
        offset = np.float32(plan.family.gain_offset(claim))
        for piece in plan.checkpoint.read_rows(claim.source, rows_per_chunk(claim.shape)):
            yield piece + offset if offset else piece
        return
    values = plan.checkpoint.read(claim.source)
    if claim.role is Role.BIAS:
        values = values * _bias_factor(plan, claim)
    yield values if order is None else values[order]


def _bias_factor(plan: Plan, bias: Claim) -> np.float32 | npt.NDArray[np.float32]:
    """The factor of a bias in the file, see ``Packing.bias_factor``."""
    if bias.linear is None or keeps_float(plan.checkpoint, bias.linear):
        return np.float32(1)
    return plan.packing.bias_factor(plan.checkpoint, bias.linear)


def already_ternary_warning(
    tensors: Sequence[PlannedTensor[Any]],
    statistics: Mapping[str, TensorStatistics],
    source_of: Callable[[PlannedTensor[Any]], str] = lambda tensor: str(tensor.origin.source),
) -> list[str]:
    """A warning if master weights are already ternary, which quantization_mode online would change.

    Args:
        tensors: the ternary tensors.
        statistics: at least of these, by their names in the output.
        source_of: the name in the checkpoint.
    """
    kept = [tensor for tensor in tensors if tensor.scales is not None and tensor.scales.share is not None]
    if not kept:
        return []
    first, seen = kept[0], statistics[kept[0].spec.name]
    effect = (
        f"its scale would shrink to {1 - seen.zeros / seen.weights:.1%} of that"
        if first.scales is not None and first.scales.group is None
        else "all its scales would become one"
    )
    found = (
        f"{len(kept)} of {len(tensors)} ternary tensors hold only -a, 0 and a and are written unchanged: "
        f"'{first.spec.name}' has a = {seen.scale_max:.6g}. Quantized again, as transformers does with "
        f"quantization_mode online, {effect}"
    )
    others = [tensor for tensor in tensors if tensor not in kept]
    if others:
        found += (
            f". The other {len(others)} are quantized: if '{source_of(others[0])}' is meant to stay "
            "float, add it to modules_to_not_convert"
        )
    return [found]


def _metadata(plan: Plan, vocabulary: Vocabulary) -> dict[str, MetadataValue]:
    found: dict[str, MetadataValue] = {
        "general.type": "model",
        "general.name": model_name(plan.checkpoint.path),
        **source_keys(plan.checkpoint.path),
    }
    kept = [t.spec.name for t in plan.tensors if t.origin.role is Role.TERNARY and not t.ternary]
    found.update(own_keys(plan.packing_name, plan.ternary_type, plan.embed_type, kept))
    found.update(plan.family.metadata(plan.numbers))
    found.update(vocabulary.metadata())
    diffusion = diffusion_settings(plan.checkpoint.config)
    if diffusion is not None:
        found.update(diffusion_metadata(diffusion))
    return found
