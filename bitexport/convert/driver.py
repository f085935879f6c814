"""``bitexport convert``: a ternary checkpoint becomes a GGUF file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from bitexport.checkpoint import Checkpoint, open_checkpoint
from bitexport.checkpoint.packings.master import MasterWeights
from bitexport.convert.encode import FloatFacts, TernaryFacts, encode
from bitexport.convert.plan import EMBED_TYPES, KEPT_FLOAT_KEY, TERNARY_TYPES, Plan, PlannedTensor, make_plan
from bitexport.convert.tokenizer_check import check_tokenizer
from bitexport.errors import OutputError, UsageError
from bitexport.families import Role
from bitexport.gguf.types import F16, F32, FILE_TYPES
from bitexport.gguf.writer import MetadataValue, TensorSpec, check_output, write_gguf
from bitexport.health import Finding, Health, check_trainer_state, check_vocabulary, refuse
from bitexport.progress import ProgressEvent
from bitexport.system.machine import peak_rss_bytes
from bitexport.tokenizer.vocabulary import Vocabulary, read_vocabulary

#: the fraction of a float tensor's values that may become zero in float16 without a warning.
MAX_FLUSHED = 1e-3


@dataclass(slots=True)
class TypeRow:
    """The tensors of one GGUF type in a conversion's report.

    Attributes:
        bits_per_weight: of the output.
        zero_fraction, scale_min, scale_max: of ternary tensors; None for others.
        scale_rounding: the largest relative change of a scale; 0 where the type keeps float32.
    """

    type: str
    tensors: int = 0
    weights: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    bits_per_weight: float = 0.0
    zero_fraction: float | None = None
    scale_min: float | None = None
    scale_max: float | None = None
    scale_rounding: float | None = None


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What a conversion did. Sizes in bytes; ``seconds`` is wall-clock time.

    Attributes:
        output: the file; with ``dry_run``, the one that would have been written.
        architecture: the GGUF architecture.
        tensors, ternary_tensors: how many were written, and how many of them hold trits.
        input_bytes: of the checkpoint's tensors.
        output_bytes: of the file; with ``dry_run``, of its tensors.
        peak_rss_bytes: the most memory that this process ever held.
        tokenizer, pre_tokenizer: llama.cpp's names of them.
        tokens, padded_tokens: ids of the vocabulary, and how many of them stand for no text.
        types: one row a GGUF type.
        health: signs of a bad checkpoint; the warnings among them are in ``warnings`` as well.
        changed: where a GGUF file was converted, what became of its metadata, but for what stayed.
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

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object, without ``schema``."""
        return asdict(self)


def convert(
    checkpoint: str | Path,
    output: str | Path,
    *,
    type: str | None = None,  # the command line's name for it
    embed_type: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    pre_tokenizer: str | None = None,
    strict: bool = False,
    all_float: bool = False,
    progress: Callable[[ProgressEvent], None] | None = None,
) -> ConvertReport:
    """Convert a checkpoint folder to a GGUF file, or a GGUF file to one of another type.

    Args:
        checkpoint: the folder; for a file see :func:`bitexport.convert.from_gguf.convert_gguf`.
        type: of the ternary tensors, one of :data:`~bitexport.convert.plan.TERNARY_TYPES`; the first of them
            when None.
        embed_type: of the embeddings and the head, one of :data:`~bitexport.convert.plan.EMBED_TYPES`; the
            first of them when None, or what a GGUF file has.
        force: replace ``output`` if it exists.
        dry_run: read and convert everything, write nothing. The check of the tokenizer against llama.cpp
            needs a file and is left out.
        pre_tokenizer: llama.cpp's name of the pre-tokenizer, where it cannot be found out.
        strict: refuse a checkpoint that shows any warning of :data:`bitexport.health.SIGNS`.
        all_float: the model is not ternary, a teacher for one: its matrices become float16, and so do the
            embeddings unless told otherwise.
        progress: told of every tensor, in bytes of the checkpoint.

    Raises:
        BitexportError: see the classes in :mod:`bitexport.errors`; no output is left behind.
    """
    if Path(checkpoint).is_file() or (Path(checkpoint).suffix == ".gguf" and not Path(checkpoint).is_dir()):
        from bitexport.convert.from_gguf import convert_gguf

        if all_float:
            raise UsageError(f"--float is for a checkpoint, and {checkpoint} is a file; expected a folder")
        return convert_gguf(
            checkpoint,
            output,
            type=type or TERNARY_TYPES[0],
            embed_type=embed_type,
            force=force,
            dry_run=dry_run,
            pre_tokenizer=pre_tokenizer,
            strict=strict,
            progress=progress,
        )
    started = time.monotonic()
    if all_float:
        if type not in (None, F16.name):
            raise UsageError(
                f"--float with --type {type}; expected no --type: the matrices become {F16.name}"
            )
        type, embed_type = F16.name, embed_type or F16.name
    type, embed_type = type or TERNARY_TYPES[0], embed_type or EMBED_TYPES[0]
    check_choice("type", type, TERNARY_TYPES)
    check_choice("embed_type", embed_type, EMBED_TYPES)
    target = Path(output)
    source = open_checkpoint(checkpoint)
    if not dry_run:
        _check_harmless(target, check_output(target, force), source)
    plan = make_plan(source, type, embed_type, all_float=all_float)
    vocabulary = read_vocabulary(source.path, plan.numbers.vocab_size, pre_tokenizer)
    work = _Work(plan, [*plan.warnings, *vocabulary.warnings], progress)
    check_trainer_state(work.health, source.path)
    check_vocabulary(
        work.health,
        ids=plan.numbers.vocab_size,
        tokens=len(vocabulary.tokens) - vocabulary.padded,
        embeddings=None,
    )

    def check(path: Path) -> None:
        if strict:
            refuse(work.health.findings())
        work.warnings.extend(check_tokenizer(path, source.path, vocabulary))

    if dry_run:
        size = sum(spec.nbytes for spec in work.specs)
        for spec in work.specs:
            for _ in work.data(spec):
                pass
        if strict:
            refuse(work.health.findings())
    else:
        size = write_gguf(
            target,
            plan.family.gguf_architecture,
            _metadata(plan, vocabulary),
            work.specs,
            work.data,
            force=force,
            check=check,
        )
    findings = work.health.findings()
    unhealthy = [finding.message for finding in findings if finding.level == "warning"]
    return ConvertReport(
        output=str(target),
        architecture=plan.family.gguf_architecture,
        tensors=len(work.specs),
        ternary_tensors=sum(tensor.ternary for tensor in plan.tensors),
        input_bytes=source.nbytes,
        output_bytes=size,
        seconds=time.monotonic() - started,
        peak_rss_bytes=peak_rss_bytes(),
        warnings=[*work.warnings, *work.taken_as_they_are(), *unhealthy],
        packing=plan.packing_name,
        type=type,
        embed_type=embed_type,
        tokenizer=vocabulary.model,
        pre_tokenizer=vocabulary.pre,
        tokens=len(vocabulary.tokens),
        padded_tokens=vocabulary.padded,
        dry_run=dry_run,
        types=work.rows(),
        health=findings,
    )


class _Work:
    """The tensors of a conversion, one after another, and what is learned on the way."""

    def __init__(
        self, plan: Plan, warnings: list[str], progress: Callable[[ProgressEvent], None] | None
    ) -> None:
        self.plan = plan
        self.warnings = warnings
        self.facts: dict[str, TernaryFacts] = {}
        self.health = Health()
        self.extra = plan.family.extra_tensors(plan.numbers)
        self._planned = {tensor.spec.name: tensor for tensor in plan.tensors}
        self._progress = progress
        self._done_bytes = 0
        self._done_tensors = 0
        self._total_bytes = sum(tensor.source_bytes for tensor in plan.tensors)
        self.specs = [TensorSpec(name, values.shape, F32) for name, values in self.extra.items()]
        self.specs += [tensor.spec for tensor in plan.tensors]

    def data(self, spec: TensorSpec) -> Iterator[npt.NDArray[Any]]:
        """The bytes of one tensor."""
        if spec.name in self.extra:
            yield self.extra[spec.name]
            return
        tensor = self._planned[spec.name]
        self._report(spec.name, 0)
        written = 0
        for piece in encode(self.plan, tensor, lambda facts: self._learn(tensor, facts), self.health):
            yield piece
            # an embedding is half of a small model: it must not look like a standstill
            written += piece.nbytes
            self._report(spec.name, tensor.source_bytes * written // spec.nbytes)
        self._done_bytes += tensor.source_bytes
        self._done_tensors += 1

    def _learn(self, tensor: PlannedTensor, facts: TernaryFacts | FloatFacts) -> None:
        if isinstance(facts, FloatFacts):
            # a few that are next to nothing are in every large tensor
            if facts.flushed > facts.weights * MAX_FLUSHED:
                self.warnings.append(
                    f"tensor '{tensor.claim.source}': {facts.flushed} of {facts.weights} values are too "
                    "small for float16 and became zero; is its scale right?"
                )
            return
        self.facts[tensor.spec.name] = facts

    def taken_as_they_are(self) -> list[str]:
        """A warning where master weights are ternary already, which quantization_mode online would shrink."""
        found = {name: facts for name, facts in self.facts.items() if facts.dequantized}
        if self.plan.packing.name != MasterWeights.name or not found:
            return []
        name, facts = next(iter(found.items()))
        share = 1 - facts.zeros / facts.weights
        return [
            f"{len(found)} of {len(self.facts)} ternary tensors hold only -a, 0 and a and are taken as they "
            f"are: '{name}' has a = {facts.scale:.6g}. Quantized once more, as transformers does with "
            f"quantization_mode online, its scale would shrink to {share:.1%} of that"
        ]

    def _report(self, label: str, part: int) -> None:
        """Tell of the bytes done: of whole tensors, and ``part`` of the one at hand."""
        if self._progress is not None:
            text = f"{self._done_tensors}/{len(self.plan.tensors)} {label}"
            self._progress(ProgressEvent(self._done_bytes + part, self._total_bytes, "B", text))

    def rows(self) -> list[TypeRow]:
        """The report's table: ternary tensors first, then by size."""
        rows: dict[tuple[str, bool], TypeRow] = {}
        seen: dict[tuple[str, bool], list[TernaryFacts]] = {}
        for tensor in self.plan.tensors:
            key = (tensor.spec.type.name, tensor.ternary)
            row = rows.setdefault(key, TypeRow(tensor.spec.type.name))
            row.tensors += 1
            row.bytes_before += tensor.source_bytes
            row.bytes_after += tensor.spec.nbytes
            weights = 1
            for size in tensor.spec.shape:
                weights *= size
            row.weights += weights
            if tensor.ternary:
                seen.setdefault(key, []).append(self.facts[tensor.spec.name])
        for key, row in rows.items():
            row.bits_per_weight = 8 * row.bytes_after / row.weights
            if facts := seen.get(key):
                row.zero_fraction = sum(fact.zeros for fact in facts) / row.weights
                row.scale_min = min(fact.scale for fact in facts)
                row.scale_max = max(fact.scale for fact in facts)
                row.scale_rounding = max(fact.rounding for fact in facts)
        return [rows[key] for key in sorted(rows, key=lambda key: (not key[1], -rows[key].bytes_after))]


def _metadata(plan: Plan, vocabulary: Vocabulary) -> dict[str, MetadataValue]:
    found: dict[str, MetadataValue] = {
        "general.type": "model",
        # a folder's name may hold bytes that are no text
        "general.name": plan.checkpoint.path.resolve().name.encode("utf-8", "replace").decode(),
        "general.file_type": FILE_TYPES[plan.ternary_type.name],
        "general.quantization_version": 2,
        "bitexport.packing": plan.packing_name,
        "bitexport.ternary_type": plan.ternary_type.name,
        "bitexport.embedding_type": plan.embed_type.name,
    }
    kept = [t.spec.name for t in plan.tensors if t.claim.role is Role.TERNARY and not t.ternary]
    if kept:
        found[KEPT_FLOAT_KEY] = kept
    found.update(plan.family.metadata(plan.numbers))
    found.update(vocabulary.metadata())
    return found


def _check_harmless(output: Path, target: Path, source: Checkpoint) -> None:
    """A conversion must not destroy what it reads: not the weights, and not what lies beside them."""
    # the shards of a checkpoint in Hugging Face's cache are links to files elsewhere
    read = {info.shard.resolve() for info in source.tensors.values()}
    inside = target.is_relative_to(source.path.resolve()) and target.suffix != ".gguf"
    if target in read or inside:
        raise OutputError(
            f"{output} lies in the checkpoint that is converted and is no .gguf file; it would be lost: "
            "expected another folder, or a name that ends in .gguf"
        )


def check_choice(option: str, value: str, known: tuple[str, ...]) -> None:
    """Raise UsageError where an option has a value that it does not take."""
    if value not in known:
        raise UsageError(f"{option} {value!r} is unknown; expected one of {', '.join(known)}")
