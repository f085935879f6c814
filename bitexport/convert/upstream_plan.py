"""Plans the conversion of a checkpoint whose architecture only llama.cpp's own converter knows.

llama.cpp's class says what the file consists of (:mod:`bitexport.upstream`). Here it is decided which of the
checkpoint's tensors are ternary, and everything is checked that is checked for the families written by hand.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitexport.checkpoint import Checkpoint
from bitexport.checkpoint.matrices import matrices
from bitexport.checkpoint.packings import (
    ONLINE,
    Packing,
    Scales,
    keeps_float,
    packing_of,
)
from bitexport.checkpoint.packings.master import MasterWeights
from bitexport.checkpoint.packings.pre_dequantized import PreDequantized
from bitexport.convert.choices import check_fits, straddling_warnings, ternary_kind
from bitexport.convert.embeddings import embedding_type
from bitexport.convert.plan import check_float, float_type
from bitexport.convert.source import FLOAT_PACKING, PlannedTensor, main_type, rounded_warnings
from bitexport.convert.upstream_checks import (
    check_graph,
    check_nothing_dropped,
    check_window,
    float32_warning,
    head_warning,
    rearranged_warning,
)
from bitexport.errors import BitexportError, CheckpointError, UnsupportedError
from bitexport.families import Claim, Role
from bitexport.gguf.names import OUTPUT_HEAD, TOKEN_EMBEDDING
from bitexport.gguf.types import F16, TensorType
from bitexport.gguf.writer import TensorSpec
from bitexport.progress import Progress, ProgressEvent, ignore, patient
from bitexport.upstream import Recipe, RecipeTensor
from bitexport.upstream.sources import SourceTensor


@dataclass(frozen=True)
class UpstreamPlan:
    """The conversion of a checkpoint, as :func:`make_upstream_plan` decides it.

    Attributes:
        recipe: what the file consists of.
        sources: the checkpoint's tensors, by name.
        type: the type of ternary tensors that was asked for, which may be ``auto``.
        ternary_type: the output type of most ternary tensors.
        embed_type: the output type of the embeddings and the head.
        tensors: the matrices; all other tensors of the recipe are float32 values that are in memory.
        warnings: what a user should know.
        all_float: whether no tensor is ternary.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    sources: Mapping[str, SourceTensor]
    packing: Packing
    type: str
    ternary_type: TensorType
    embed_type: TensorType
    tensors: tuple[PlannedTensor[RecipeTensor], ...]
    warnings: tuple[str, ...]
    all_float: bool

    @property
    def packing_name(self) -> str:
        """The packing of the weights as reports name it."""
        return FLOAT_PACKING if self.all_float else self.packing.name


def make_upstream_plan(
    checkpoint: Checkpoint,
    recipe: Recipe,
    sources: Mapping[str, SourceTensor],
    type: str,
    embed_type: str,
    *,
    all_float: bool,
    progress: Progress = ignore,
) -> UpstreamPlan:
    """Decide what to write.

    Args:
        sources: see :func:`~bitexport.upstream.sources.source_tensors`.
        type, embed_type, all_float, progress: as in :func:`~bitexport.convert.plan.make_plan`.

    Raises:
        CheckpointError: a tensor of the checkpoint would be dropped, or none is ternary.
        UnsupportedError: a type cannot hold a tensor, or llama.cpp joins ternary weights and others in one.
    """
    if all_float:
        check_float(checkpoint)
    packing = packing_of(checkpoint)
    check_graph(checkpoint.config, recipe)
    warnings = [*check_nothing_dropped(checkpoint, recipe), *check_window(checkpoint.config, recipe)]
    ternary = set() if all_float else _ternary_sources(checkpoint, packing, recipe, sources, warnings)
    planned: list[PlannedTensor[RecipeTensor]] = []
    report, done = patient(progress), 0
    for tensor in recipe.tensors:
        if tensor.matrix:
            report(ProgressEvent(done, checkpoint.nbytes, "B", f"looking for scales: {tensor.name}"))
            types = (type, embed_type)
            planned.append(_planned(checkpoint, packing, tensor, ternary, types, warnings))
            done += planned[-1].source_bytes
    tensors = tuple(planned)
    warnings.extend(rearranged_warning(tensors, ternary))
    warnings.extend(float32_warning(recipe, sources))
    warnings.extend(head_warning(checkpoint, packing, recipe))
    warnings.extend(straddling_warnings(tensor.spec for tensor in tensors))
    warnings.extend(rounded_warnings(tensors))
    warnings.extend(f"llama.cpp's converter says: {note}" for note in recipe.notes)
    return UpstreamPlan(
        checkpoint,
        recipe,
        sources,
        packing,
        type,
        main_type([tensor for tensor in tensors if tensor.origin.linear]) or F16,
        next((t.spec.type for t in tensors if t.spec.name == TOKEN_EMBEDDING), F16),
        tensors,
        tuple(warnings),
        all_float,
    )


def _ternary_sources(
    checkpoint: Checkpoint,
    packing: Packing,
    recipe: Recipe,
    sources: Mapping[str, SourceTensor],
    warnings: list[str],
) -> set[str]:
    """The names of the checkpoint's tensors that are ternary."""
    linear = _linear_sources(recipe)
    ternary = {name for name, source in sources.items() if source.packed}
    candidates = [name for name in linear if not sources[name].packed and not keeps_float(checkpoint, name)]
    if packing.name == MasterWeights.name:
        ternary.update(candidates)
        candidates = []
    elif packing.name == PreDequantized.name:
        ternary.update(_by_values(checkpoint, packing, candidates))
        candidates = [name for name in candidates if name not in ternary]
    if not ternary:
        raise CheckpointError(
            f"none of the {len(linear)} linear layers of this {recipe.class_name} is ternary; expected "
            "packed weights, weights of -a, 0 and a, or master weights with the quantization_config "
            f"{dict(ONLINE)}: to convert a float model to float16, use --float"
        )
    if candidates:
        kinds = sorted({_kind(name) for name in candidates})
        warnings.append(
            f"{len(candidates)} of {len(linear)} linear layers are not ternary in the checkpoint and stay "
            f"float: {', '.join(kinds[:5])}{' and others' if len(kinds) > 5 else ''}"
        )
    return ternary


def _linear_sources(recipe: Recipe) -> list[str]:
    """The names of the tensors that are only weights of linear layers in blocks."""
    found: dict[str, bool] = {}
    for tensor in recipe.tensors:
        for name in tensor.sources:
            found[name] = found.get(name, True) and tensor.linear
    return [name for name, linear in found.items() if linear]


def _by_values(checkpoint: Checkpoint, packing: Packing, candidates: list[str]) -> Iterator[str]:
    """Those of float weights that are ternary: all layers of a kind, or none.

    Raises:
        CheckpointError, UnsupportedError: some layers of a kind are ternary and one is not.
    """
    reasons: dict[str, BitexportError | None] = {}
    for name in candidates:
        try:
            for view, part in matrices(checkpoint, name):
                packing.check(view, part)
            reasons[name] = None
        except (CheckpointError, UnsupportedError) as error:
            reasons[name] = error
    kinds: dict[str, list[str]] = {}
    for name in candidates:
        kinds.setdefault(_kind(name), []).append(name)
    for names in kinds.values():
        failed = [reason for name in names if (reason := reasons[name]) is not None]
        if failed and len(failed) < len(names):
            raise failed[0]
        if not failed:
            yield from names
    if reasons and all(reasons.values()):
        # what is wrong with the first one says more than that there is none
        first = reasons[candidates[0]]
        assert first is not None
        raise first


def _kind(name: str) -> str:
    """A tensor's name with ``*`` for the numbers in it."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def _planned(
    checkpoint: Checkpoint,
    packing: Packing,
    tensor: RecipeTensor,
    ternary: set[str],
    types: tuple[str, str],
    warnings: list[str],
) -> PlannedTensor[RecipeTensor]:
    """Plan one matrix of the output."""
    from_ternary = [name for name in tensor.sources if name in ternary]
    # rows of embeddings are looked up, which not every ternary type allows; a packed head is a linear layer
    multiplied = tensor.linear or tensor.name == OUTPUT_HEAD
    is_ternary = bool(from_ternary) and tensor.rows is not None and multiplied
    if is_ternary and len(from_ternary) < len(tensor.sources):
        others = [name for name in tensor.sources if name not in ternary]
        raise UnsupportedError(
            f"llama.cpp joins '{from_ternary[0]}', which is ternary, and '{others[0]}', which is not, in "
            f"'{tensor.name}'; expected all of them to be ternary or none: see modules_to_not_convert"
        )
    scales = None
    if is_ternary:
        scales = _scales(checkpoint, packing, tensor)
        kind = ternary_kind(tensor.name, tensor.shape, scales, types[0])
    elif not tensor.linear:
        whole = tensor.rows is not None and len(tensor.sources) == 1
        name = tensor.sources[0] if whole else tensor.name
        kind, scales = embedding_type(checkpoint, packing, name, tensor.shape, types[1], warnings, look=whole)
        is_ternary = scales is not None
    elif tensor.rows is None:
        kind = F16
    else:
        floats = [
            float_type(
                checkpoint, Claim(name, "", Role.TERNARY, tuple(checkpoint.info(name).shape)), warnings
            )
            for name in tensor.sources
        ]
        kind = max(floats, key=lambda each: each.nbytes((each.block,)) / each.block)
    check_fits(tensor.name, tensor.shape, kind, embedding=not tensor.linear and not is_ternary)
    source_bytes = sum(_stored_bytes(checkpoint, packing, name) for name in tensor.sources)
    spec = TensorSpec(tensor.name, tensor.shape, kind)
    return PlannedTensor(tensor, spec, is_ternary, source_bytes, scales)


def _stored_bytes(checkpoint: Checkpoint, packing: Packing, name: str) -> int:
    """The bytes of a tensor in the checkpoint, with those of the tensors that its packing needs."""
    if not packing.holds(checkpoint, name):
        return checkpoint.info(name).nbytes
    names = (packing.stored_name(name), *packing.partners(name))
    return sum(checkpoint.info(each).nbytes for each in names)


def _scales(checkpoint: Checkpoint, packing: Packing, tensor: RecipeTensor) -> Scales:
    """The scales of all weights that a ternary tensor consists of; its type depends on them."""
    assert tensor.rows is not None
    columns = tensor.shape[-1]
    found = [
        packing.scales(view, part)
        for name in tensor.sources
        for view, part in weight_parts(checkpoint, packing, name)
    ]
    lows = [each.low for each in found if each.low is not None]
    highs = [each.high for each in found if each.high is not None]
    known = len(lows) == len(highs) == len(found)
    low, high = (min(lows), max(highs)) if known else (None, None)
    shares = [each.share for each in found if each.share is not None]
    share = min(shares) if shares else None
    rounded = sum(each.rounded for each in found)
    if all(each.group is None for each in found) and (len(found) == 1 or (known and low == high)):
        return Scales(None, low, high, share, rounded)
    group = math.gcd(columns, *(each.group or columns for each in found))
    if tensor.rows.columns is not None:
        group = moved_group(tensor.rows.columns, group)
    return Scales(group, low, high, share, rounded)


def weight_parts(checkpoint: Checkpoint, packing: Packing, name: str) -> Iterator[tuple[Checkpoint, str]]:
    """The matrices that a ternary tensor of the checkpoint consists of, see :func:`matrices`."""
    if packing.holds(checkpoint, name):
        yield checkpoint, name
    else:
        yield from matrices(checkpoint, name)


def moved_group(columns: npt.NDArray[np.int64], group: int) -> int:
    """The largest groups whose weights still share a scale after the columns were put in another order.

    Args:
        columns: the column that each column was.
        group: the size of the groups before.
    """
    changes = np.flatnonzero(np.diff(columns // group)) + 1
    return int(np.gcd.reduce(changes, initial=group))
