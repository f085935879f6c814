"""The interface of a source: it plans the tensors of a conversion, and encodes them one at a time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from bitexport.checkpoint.packings import Scales
from bitexport.checkpoint.sentence_transformers import EmbeddingSettings
from bitexport.convert.encoding import TensorStatistics
from bitexport.gguf.types import FILE_TYPES, TYPES, TensorType
from bitexport.gguf.writer import MetadataValue, TensorSpec
from bitexport.health import Health
from bitexport.hub import source_of

#: The metadata key that lists the linear layers that are not ternary, if there are any.
KEPT_FLOAT_KEY = "bitexport.kept_float"

#: The metadata keys of the repository and the commit that a file was made from: llama.cpp's, and ours.
REPOSITORY_KEY = "general.source.huggingface.repository"
COMMIT_KEY = "bitexport.source_commit"

#: The metadata key that names the packing of the weights, and its value where none is ternary.
PACKING_KEY = "bitexport.packing"
FLOAT_PACKING = "float"

Origin = TypeVar("Origin")


@dataclass(frozen=True, slots=True)
class PlannedTensor(Generic[Origin]):
    """One tensor of the output.

    Attributes:
        origin: where it comes from: a :class:`~bitexport.families.Claim` on a checkpoint, or a
            :class:`~bitexport.gguf.reader.GGUFTensor`.
        spec: its name, shape and type in the output.
        ternary: whether it is encoded from trits.
        source_bytes: its bytes in the source, with those of the tensors that its packing needs.
        scales: what the plan knows of a ternary tensor's scales; None if its type does not depend on them.
    """

    origin: Origin
    spec: TensorSpec
    ternary: bool
    source_bytes: int
    scales: Scales | None = None


def main_type(tensors: Sequence[PlannedTensor[Any]]) -> TensorType | None:
    """The type of most weights in ternary tensors, which names the file's type; None if there are none."""
    weights: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.ternary:
            weights[tensor.spec.type.name] += math.prod(tensor.spec.shape)
    return TYPES[weights.most_common(1)[0][0]] if weights else None


def rounded_warnings(tensors: Sequence[PlannedTensor[Any]]) -> list[str]:
    """A warning if groups of float weights contain two magnitudes one step of their dtype apart."""
    found = [tensor for tensor in tensors if tensor.scales is not None and tensor.scales.rounded]
    if not found:
        return []
    groups = sum(tensor.scales.rounded for tensor in found if tensor.scales is not None)
    return [
        f"{groups:,} groups of weights in {len(found)} tensors, the first of them '{found[0].spec.name}', "
        "contain two magnitudes that differ by one rounding step of their dtype; the more common one becomes "
        "the scale"
    ]


def own_keys(
    packing: str, ternary_type: TensorType, embed_type: TensorType, kept_float: Sequence[str]
) -> dict[str, MetadataValue]:
    """The metadata that bitexport writes about what it did with a checkpoint.

    Args:
        packing: of the weights, as reports name it.
        ternary_type: of most ternary tensors.
        embed_type: of the embeddings and the head.
        kept_float: the names in the file of linear layers that are not ternary.
    """
    found: dict[str, MetadataValue] = {
        "general.file_type": FILE_TYPES[ternary_type.name],
        "general.quantization_version": 2,
        PACKING_KEY: packing,
        "bitexport.ternary_type": ternary_type.name,
        "bitexport.embedding_type": embed_type.name,
    }
    if kept_float:
        found[KEPT_FLOAT_KEY] = list(kept_float)
    return found


def model_name(folder: Path) -> str:
    """A checkpoint's name: that of its repository on the hub, otherwise the folder's."""
    source = source_of(folder)
    if source is not None:
        return source.repo.rpartition("/")[2]
    # a folder's name may contain bytes that are not UTF-8
    return folder.resolve().name.encode("utf-8", "replace").decode()


def source_keys(path: Path) -> dict[str, MetadataValue]:
    """The metadata that says where a source came from, if the hub's cache knows; otherwise none."""
    found = source_of(path)
    if found is None:
        return {}
    return {REPOSITORY_KEY: found.repo, "general.source.repo_url": found.url, COMMIT_KEY: found.commit}


@dataclass(frozen=True, slots=True)
class SourceSummary:
    """The report's facts about the source, see :class:`~bitexport.convert.report.ConvertReport`.

    ``type`` is what was asked for: one of :data:`~bitexport.convert.choices.TYPE_CHOICES`.
    """

    input_bytes: int
    packing: str
    type: str
    embed_type: str
    tokenizer: str
    pre_tokenizer: str
    tokens: int
    padded_tokens: int
    embedding: EmbeddingSettings | None = None
    changed: list[str] = field(default_factory=list)
    adapter: str | None = None


class Source(Protocol[Origin]):
    """A checkpoint or a GGUF file, opened and planned.

    Attributes:
        architecture: the GGUF architecture of the output.
        metadata: its other keys.
        tensors: its tensors, in order.
        extra_tensors: small float32 tensors that are not in the source, by name; written first.
        warnings: those of the plan.
        summary: for the report.
        health: is given every tensor that is read.
    """

    architecture: str
    metadata: Mapping[str, MetadataValue]
    tensors: Sequence[PlannedTensor[Origin]]
    extra_tensors: Mapping[str, npt.NDArray[np.float32]]
    warnings: Sequence[str]
    summary: SourceSummary
    health: Health

    def encode_tensor(
        self, tensor: PlannedTensor[Origin], statistics: TensorStatistics
    ) -> Iterator[npt.NDArray[Any]]:
        """The bytes of one tensor, in pieces; ``statistics`` is complete after the last one."""
        ...

    def check_written(self, path: Path) -> list[str]:
        """Check the finished file before it gets its name; returns warnings."""
        ...

    def final_warnings(self, statistics: Mapping[str, TensorStatistics]) -> list[str]:
        """Warnings that follow from the statistics of all tensors, by their names in the output."""
        ...
