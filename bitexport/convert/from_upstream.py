"""A checkpoint of an architecture that llama.cpp's own converter knows, as the source of a conversion."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitexport.checkpoint import Checkpoint
from bitexport.checkpoint.packings.master import MasterWeights
from bitexport.convert.encoding import TensorStatistics, encode_float, encode_ternary
from bitexport.convert.from_checkpoint import already_ternary_warning
from bitexport.convert.opening import adapter_warnings, merged_adapter
from bitexport.convert.source import (
    REPOSITORY_KEY,
    PlannedTensor,
    SourceSummary,
    model_name,
    own_keys,
    source_keys,
)
from bitexport.convert.tokenizer_check import check_tokenizer
from bitexport.convert.upstream_plan import UpstreamPlan, make_upstream_plan, moved_group, weight_parts
from bitexport.errors import GGUFError, NativeLibraryError, TokenizerError, UnsupportedError
from bitexport.gguf.dequantize import rows_per_chunk
from bitexport.gguf.names import TOKEN_EMBEDDING
from bitexport.gguf.writer import MetadataValue
from bitexport.health import Health, check_trainer_state, check_vocabulary
from bitexport.progress import Progress, ignore
from bitexport.ternary import AnyTernary, GroupedTernary, TernaryTensor
from bitexport.tokenizer.chat import template_of_key
from bitexport.tokenizer.settings import check_chat_template
from bitexport.tokenizer.vocabulary import Vocabulary, read_vocabulary
from bitexport.upstream import Recipe, RecipeTensor, read_recipe
from bitexport.upstream.sources import source_tensors

MODEL_KEY, PRE_KEY = "tokenizer.ggml.model", "tokenizer.ggml.pre"

#: The keys that the checkpoint's tokenizer.json decides if llama.cpp's converter does not write them:
#: libllama's defaults depend on the kind of tokenizer.
ENDS = ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token")


def plan_upstream(
    checkpoint: Checkpoint,
    type: str,
    embed_type: str,
    pre_tokenizer: str | None,
    *,
    all_float: bool,
    progress: Progress = ignore,
) -> UpstreamSource:
    """Plan the conversion of a checkpoint; arguments as in :func:`bitexport.convert.convert`.

    Raises:
        BitexportError: see :func:`~bitexport.upstream.read_recipe`,
            :func:`~bitexport.convert.upstream_plan.make_upstream_plan` and
            :func:`~bitexport.tokenizer.vocabulary.read_vocabulary`.
    """
    sources = source_tensors(checkpoint)  # first: it finds damaged tensors before anything that takes long
    recipe = read_recipe(checkpoint)
    plan = make_upstream_plan(
        checkpoint, recipe, sources, type, embed_type, all_float=all_float, progress=progress
    )
    return UpstreamSource(plan, *_vocabulary(checkpoint, recipe, pre_tokenizer))


class UpstreamSource:
    """A :class:`~bitexport.convert.source.Source` that follows a recipe, one tensor at a time."""

    def __init__(self, plan: UpstreamPlan, vocabulary: Vocabulary, keys: Mapping[str, MetadataValue]) -> None:
        self.plan = plan
        self.vocabulary = vocabulary
        self.architecture = plan.recipe.architecture
        self.metadata: Mapping[str, MetadataValue] = {**plan.recipe.metadata, **keys, **_own_keys(plan)}
        self.tensors: Sequence[PlannedTensor[RecipeTensor]] = plan.tensors
        self.extra_tensors: Mapping[str, npt.NDArray[np.float32]] = {
            tensor.name: tensor.values
            for tensor in plan.recipe.tensors
            if not tensor.matrix and tensor.values is not None
        }
        self.warnings: Sequence[str] = (
            *adapter_warnings(plan.checkpoint, all_float=plan.all_float),
            *plan.warnings,
            *vocabulary.warnings,
        )
        self.summary = SourceSummary(
            input_bytes=plan.checkpoint.nbytes,
            packing=plan.packing_name,
            type=plan.type,
            embed_type=plan.embed_type.name,
            tokenizer=vocabulary.model,
            pre_tokenizer=vocabulary.pre,
            tokens=len(vocabulary.tokens) or plan.recipe.tokens,
            padded_tokens=vocabulary.padded,
            adapter=merged_adapter(plan.checkpoint),
        )
        self.health = Health()
        self._seen: set[str] = set()
        check_trainer_state(self.health, plan.checkpoint.path)
        check_vocabulary(
            self.health,
            ids=_embeddings(plan.recipe),
            tokens=self.summary.tokens - self.summary.padded_tokens,
            embeddings=None,
        )
        for name, values in self.extra_tensors.items():
            self.health.floats(name, values)

    def encode_tensor(
        self, tensor: PlannedTensor[RecipeTensor], statistics: TensorStatistics
    ) -> Iterator[npt.NDArray[Any]]:
        """The bytes of one tensor, in pieces; errors as for the families written by hand."""
        if tensor.ternary:
            weights = self._ternary(tensor.origin)
            try:
                yield encode_ternary(tensor.spec, weights, statistics)
            except UnsupportedError as error:
                raise UnsupportedError(f"tensor '{tensor.spec.name}': {error}") from error
            return
        for values in self._float(tensor.origin):
            yield encode_float(tensor.spec, values, statistics)

    def _ternary(self, tensor: RecipeTensor) -> AnyTernary:
        """The rows of a ternary tensor, as one matrix: those of all experts follow one another."""
        assert tensor.rows is not None
        table = tensor.rows.table()
        trits = np.empty((len(table), tensor.shape[-1]), dtype=np.int8)
        nothing = trits[:0].copy()
        parts: list[tuple[npt.NDArray[np.intp], npt.NDArray[np.int64], AnyTernary]] = []
        for number, name in enumerate(tensor.rows.sources):
            written = np.flatnonzero(table[:, 0] == number)
            first = 0
            for weights in self._unpacked(name):
                stored = table[written, 1] - first
                inside = (stored >= 0) & (stored < len(weights.trits))
                trits[written[inside]] = weights.trits[stored[inside]]
                # the trits were copied, so only the scales are kept
                parts.append((written[inside], stored[inside], replace(weights, trits=nothing)))
                first += len(weights.trits)
        return _reordered(_joined(trits, parts), tensor.rows.columns)

    def _unpacked(self, name: str) -> Iterator[AnyTernary]:
        """A weight of the checkpoint, or its experts one after another."""
        plan = self.plan
        for view, part in weight_parts(plan.checkpoint, plan.packing, name):
            weights = plan.packing.unpack(view, part)
            if part not in self._seen:
                self._seen.add(part)
                self.health.ternary(part, weights)
            yield weights

    def _float(self, tensor: RecipeTensor) -> Iterator[npt.NDArray[np.float32]]:
        """The values of a float tensor, some rows at a time if their order does not change."""
        checkpoint = self.plan.checkpoint
        if tensor.rows is None:
            assert tensor.values is not None
            self.health.floats(tensor.name, tensor.values)
            yield tensor.values
            return
        sources = [self.plan.sources[name] for name in tensor.rows.sources]
        shape = sources[0].shape
        if tensor.rows.whole and not sources[0].packed and math.prod(shape) == math.prod(tensor.shape):
            (name,) = tensor.rows.sources
            for values in checkpoint.read_rows(name, rows_per_chunk(shape)):
                self.health.floats(name, values)
                yield values
            return
        table = tensor.rows.table()
        found = np.empty((len(table), tensor.shape[-1]), dtype=np.float32)
        for number, name in enumerate(tensor.rows.sources):
            packed = sources[number].packed
            values = (
                self.plan.packing.unpack(checkpoint, name).dequantize() if packed else checkpoint.read(name)
            )
            self.health.floats(name, values)
            chosen = table[:, 0] == number
            found[chosen] = values.reshape(-1, tensor.shape[-1])[table[chosen, 1]]
        yield found if tensor.rows.columns is None else found[:, tensor.rows.columns]

    def check_written(self, path: Path) -> list[str]:
        """Load the file in libllama without its data, and compare its tokenizer with the checkpoint's."""
        from bitexport.runtime.loading import check_model

        try:
            check_model(path, trial=False)
        except NativeLibraryError as error:
            return [f"the file was not checked against llama.cpp: {error}"]
        except GGUFError as error:
            # the message names the temporary file, which means nothing to the user
            why = str(error).replace(str(path), "it").removeprefix("it cannot be loaded: ").partition(";")[0]
            raise UnsupportedError(
                f"llama.cpp's {self.architecture} graph refuses what its converter "
                f"{self.plan.recipe.class_name} makes of the checkpoint ({why}); expected the config.json "
                "and the tensors of that architecture as transformers saves them"
            ) from error
        if not (self.plan.checkpoint.path / "tokenizer.json").is_file():
            return ["the tokenizer was not checked against llama.cpp: the checkpoint has no tokenizer.json"]
        return check_tokenizer(path, self.plan.checkpoint.path, self.vocabulary)

    def final_warnings(self, statistics: Mapping[str, TensorStatistics]) -> list[str]:
        """A warning about master weights that are already ternary."""
        if self.plan.packing.name != MasterWeights.name:
            return []
        return already_ternary_warning(
            [tensor for tensor in self.tensors if tensor.ternary and tensor.origin.linear],
            statistics,
            lambda tensor: str(tensor.origin.sources[0]),
        )


def _joined(
    trits: npt.NDArray[np.int8],
    parts: Sequence[tuple[npt.NDArray[np.intp], npt.NDArray[np.int64], AnyTernary]],
) -> AnyTernary:
    """A matrix of rows that come from several weights.

    Args:
        trits: int8 ``[out, in]``.
        parts: of each weight: the rows in ``trits``, the same rows in the weight, and its scales.
    """
    single = [weights for _, _, weights in parts if isinstance(weights, TernaryTensor)]
    if len(single) == len(parts) and len({float(weights.scale) for weights in single}) == 1:
        return TernaryTensor(trits, single[0].scale, all(weights.dequantized for weights in single))
    columns = trits.shape[1]
    group = columns
    for _, _, weights in parts:
        if isinstance(weights, GroupedTernary):
            group = math.gcd(group, columns // weights.scales.shape[1])
    scales = np.empty((len(trits), columns // group), dtype=np.float32)
    for written, stored, weights in parts:
        if isinstance(weights, TernaryTensor):
            scales[written] = weights.scale
        else:
            repeated = columns // group // weights.scales.shape[1]
            scales[written] = np.repeat(weights.scales[stored], repeated, axis=1)
    return GroupedTernary(trits, scales)


def _reordered(weights: AnyTernary, columns: npt.NDArray[np.int64] | None) -> AnyTernary:
    """A matrix with its columns in another order; the scales of groups move with them."""
    if columns is None:
        return weights
    trits = weights.trits[:, columns]
    if isinstance(weights, TernaryTensor):
        return replace(weights, trits=trits)
    group = moved_group(columns, weights.group)
    return GroupedTernary(trits, weights.scales[:, columns[::group] // weights.group])


def _embeddings(recipe: Recipe) -> int:
    """How many rows the token embedding has."""
    for tensor in recipe.tensors:
        if tensor.name == TOKEN_EMBEDDING:
            return tensor.shape[0]
    raise UnsupportedError(
        f"llama.cpp's {recipe.class_name} writes no {TOKEN_EMBEDDING}; expected a language model"
    )


def _vocabulary(
    checkpoint: Checkpoint, recipe: Recipe, pre_tokenizer: str | None
) -> tuple[Vocabulary, dict[str, MetadataValue]]:
    """The vocabulary, and its keys that differ from those of the recipe.

    Raises:
        TokenizerError: neither llama.cpp's converter nor ours can convert the tokenizer, or the pre-tokenizer
            is unknown to both; or the chat template cannot be used.
    """
    for key, template in recipe.strings.items():
        if template_of_key(key):
            check_chat_template(template)
    try:
        own = read_vocabulary(checkpoint.path, _embeddings(recipe), pre_tokenizer)
    except TokenizerError:
        if recipe.no_vocabulary or recipe.unknown_pre:
            raise
        own = None
    if own is not None and recipe.no_vocabulary:
        return own, own.metadata()
    model, pre = recipe.strings.get(MODEL_KEY, "none"), recipe.strings.get(PRE_KEY, "default")
    keys: dict[str, MetadataValue] = {}
    if own is not None:
        keys.update({key: value for key, value in own.metadata().items() if key in ENDS})
        keys = {key: value for key, value in keys.items() if key not in recipe.metadata}
    if recipe.unknown_pre and own is not None:
        pre = own.pre
    if pre_tokenizer is not None:
        pre = pre_tokenizer
    if pre != recipe.strings.get(PRE_KEY, "default"):
        keys[PRE_KEY] = pre
    vocabulary = Vocabulary(
        model=model,
        pre=pre,
        tokens=[],
        types=[],
        merges=[],
        scores=[],
        special={},
        add_bos=False,
        add_eos=False,
        add_space_prefix=None,
        chat_template=None,
        padded=recipe.padded,
    )
    return vocabulary, keys


def _own_keys(plan: UpstreamPlan) -> dict[str, MetadataValue]:
    """The keys of every file that bitexport writes, and the converter."""
    kept = [t.spec.name for t in plan.tensors if t.origin.linear and not t.ternary]
    keys = own_keys(plan.packing_name, plan.ternary_type, plan.embed_type, kept)
    found = {**keys, "bitexport.converter": plan.recipe.class_name, **source_keys(plan.checkpoint.path)}
    if REPOSITORY_KEY in found:
        # the converter sees a folder that is named after a commit
        found["general.name"] = model_name(plan.checkpoint.path)
    return found
