"""The report of a conversion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bitexport.checkpoint.packings.scale_groups import percent, unit_of
from bitexport.checkpoint.sentence_transformers import EmbeddingSettings
from bitexport.convert.encoding import TensorStatistics
from bitexport.convert.source import PlannedTensor, Source
from bitexport.health import Finding
from bitexport.system.machine import peak_rss_bytes


@dataclass(frozen=True, slots=True)
class TypeRow:
    """The tensors of one GGUF type.

    Attributes:
        bytes_before, bytes_after: in the source and in the output.
        bits_per_weight: of the output.
        zero_fraction, scale_min, scale_max: of ternary tensors; None for others.
        scale_rounding: the largest relative change of a scale; 0 if the type keeps float32.
    """

    type: str
    tensors: int
    weights: int
    bytes_before: int
    bytes_after: int
    bits_per_weight: float
    zero_fraction: float | None = None
    scale_min: float | None = None
    scale_max: float | None = None
    scale_rounding: float | None = None


@dataclass(frozen=True, slots=True)
class ScaleRow:
    """The ternary tensors whose scales have the same groups and that are written as the same type.

    Attributes:
        type: of the output.
        per: what shares a scale: ``tensor``, ``row`` or ``group``.
        columns: how many neighbouring weights of a row are a group; None for the others.
        recognised: whether the scales were recognised from float values.
        share: if so, the fraction of groups that contain only -a, 0 and a.
    """

    type: str
    per: str
    columns: int | None
    tensors: int
    recognised: bool
    share: float | None

    def describe(self) -> str:
        """The row as a clause."""
        per = {"tensor": "one scale", "row": "a scale per row"}.get(
            self.per, f"a scale per group of {self.columns} columns"
        )
        found = ""
        if self.share is not None:
            found = f", recognised from the values: {percent(self.share)} of the {self.per}s fit"
        count = f"{self.tensors} tensor{'' if self.tensors == 1 else 's'}"
        return f"{self.type} for {count} with {per}{found}"


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """The result of a conversion. Sizes in bytes; ``seconds`` is wall-clock time.

    Attributes:
        output: the file; with ``dry_run``, the one that would have been written.
        architecture: the GGUF architecture.
        tensors, ternary_tensors: how many were written, and how many of them are ternary.
        input_bytes: of the source's tensors.
        output_bytes: of the file; with ``dry_run``, of its tensors.
        peak_rss_bytes: the peak memory of this process.
        tokenizer, pre_tokenizer: llama.cpp's names for them.
        tokens, padded_tokens: ids of the vocabulary, and how many of them have no text.
        types: one row for each GGUF type, ternary tensors first.
        type_reason: which type the ternary tensors have and why, in a line.
        scales: the groups of weights that share a scale in the ternary tensors.
        health: signs of a bad checkpoint; the warnings among them are in ``warnings`` as well.
        changed: if a GGUF file was converted, the metadata that differs from the source's, as clauses.
        adapter: the folder of the adapter that was merged into the weights.
        embedding: how an embedding model pools; None for any other model.
    """

    output: str
    architecture: str
    tensors: int
    ternary_tensors: int
    input_bytes: int
    output_bytes: int
    seconds: float
    peak_rss_bytes: int
    warnings: list[str]
    packing: str
    type: str
    embed_type: str
    tokenizer: str
    pre_tokenizer: str
    tokens: int
    padded_tokens: int
    dry_run: bool
    types: list[TypeRow] = field(default_factory=list)
    health: list[Finding] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    adapter: str | None = None
    type_reason: str = ""
    scales: list[ScaleRow] = field(default_factory=list)
    embedding: EmbeddingSettings | None = None

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object, without ``schema``."""
        return asdict(self)


def make_report(
    source: Source[Any],
    statistics: Mapping[str, TensorStatistics],
    *,
    output: Path,
    output_bytes: int,
    seconds: float,
    warnings: Sequence[str],
    dry_run: bool,
) -> ConvertReport:
    """The report of a finished conversion.

    Args:
        statistics: those of each of the source's tensors, by its name in the output.
        warnings: those of the check of the written file; those of the source and of health are added here.
    """
    findings = source.health.findings()
    unhealthy = [finding.message for finding in findings if finding.level == "warning"]
    summary = source.summary
    scales = scale_rows(source.tensors)
    return ConvertReport(
        output=str(output),
        architecture=source.architecture,
        tensors=len(source.extra_tensors) + len(source.tensors),
        ternary_tensors=sum(tensor.ternary for tensor in source.tensors),
        input_bytes=summary.input_bytes,
        output_bytes=output_bytes,
        seconds=seconds,
        peak_rss_bytes=peak_rss_bytes(),
        warnings=[*source.warnings, *source.final_warnings(statistics), *warnings, *unhealthy],
        packing=summary.packing,
        type=summary.type,
        embed_type=summary.embed_type,
        tokenizer=summary.tokenizer,
        pre_tokenizer=summary.pre_tokenizer,
        tokens=summary.tokens,
        padded_tokens=summary.padded_tokens,
        dry_run=dry_run,
        types=type_rows(source.tensors, statistics),
        health=findings,
        changed=summary.changed,
        adapter=summary.adapter,
        type_reason=f"--type {summary.type}: {'; '.join(row.describe() for row in scales)}" if scales else "",
        scales=scales,
        embedding=summary.embedding,
    )


def scale_rows(tensors: Sequence[PlannedTensor[Any]]) -> list[ScaleRow]:
    """A row for each combination of type and groups of scales, the most tensors first."""
    groups: dict[tuple[str, str, int | None, bool], list[float]] = {}
    for tensor in tensors:
        scales = tensor.scales
        if tensor.ternary and scales is not None:
            per = unit_of(scales.group, tensor.spec.shape[-1]).split()[0]
            columns = scales.group if per == "group" else None
            key = (tensor.spec.type.name, per, columns, scales.share is not None)
            groups.setdefault(key, []).append(1.0 if scales.share is None else scales.share)
    rows = [
        ScaleRow(kind, per, columns, len(shares), found, min(shares) if found else None)
        for (kind, per, columns, found), shares in groups.items()
    ]
    return sorted(rows, key=lambda row: -row.tensors)


def type_rows(
    tensors: Sequence[PlannedTensor[Any]], statistics: Mapping[str, TensorStatistics]
) -> list[TypeRow]:
    """A row for each type: those of ternary tensors first, then the largest first."""
    groups: dict[tuple[bool, str], list[PlannedTensor[Any]]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.ternary, tensor.spec.type.name), []).append(tensor)
    rows = [
        (ternary, _type_row(group, [statistics[t.spec.name] for t in group] if ternary else []))
        for (ternary, _), group in groups.items()
    ]
    rows.sort(key=lambda entry: (not entry[0], -entry[1].bytes_after))
    return [row for _, row in rows]


def _type_row(tensors: Sequence[PlannedTensor[Any]], ternary: Sequence[TensorStatistics]) -> TypeRow:
    """The row of tensors of one type; ``ternary`` has their statistics if they are ternary."""
    weights = sum(math.prod(tensor.spec.shape) for tensor in tensors)
    bytes_after = sum(tensor.spec.nbytes for tensor in tensors)
    return TypeRow(
        type=tensors[0].spec.type.name,
        tensors=len(tensors),
        weights=weights,
        bytes_before=sum(tensor.source_bytes for tensor in tensors),
        bytes_after=bytes_after,
        bits_per_weight=8 * bytes_after / max(weights, 1),
        zero_fraction=sum(each.zeros for each in ternary) / max(weights, 1) if ternary else None,
        scale_min=min((each.scale_min for each in ternary), default=None),
        scale_max=max((each.scale_max for each in ternary), default=None),
        scale_rounding=max((each.scale_rounding for each in ternary), default=None),
    )
