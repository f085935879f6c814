"""``bitexport convert`` of a GGUF file: its ternary tensors get another type, everything else stays.

A linear layer is a matrix ``blk.N.<...>.weight``. Where the file has ternary types, those tensors are the
ternary ones; in a file of floats, every linear layer must hold ternary values, but for those that the file
itself lists as kept in float (``bitexport.kept_float``).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitexport.convert import ConvertReport, TypeRow
from bitexport.convert.driver import check_choice
from bitexport.convert.encoding import FloatFacts, encode_float
from bitexport.convert.plan import EMBED_TYPES, KEPT_FLOAT_KEY, TERNARY_TYPES, needs, straddling_warnings
from bitexport.convert.tokenizer_check import check_loads
from bitexport.errors import BitexportError, GGUFError, OutputError, UnsupportedError
from bitexport.gguf.dequantize import can_dequantize, dequantize_rows
from bitexport.gguf.names import OUTPUT_HEAD, TOKEN_EMBEDDING
from bitexport.gguf.packers import PACKERS, f16
from bitexport.gguf.reader import Array, GGUFFile, GGUFTensor, read_gguf
from bitexport.gguf.types import FILE_TYPES, I2_S, TYPES, TensorType, alternatives, runs
from bitexport.gguf.writer import ALIGNMENT, MetadataValue, RawValue, TensorSpec, check_output, write_gguf
from bitexport.health import Finding, Health, refuse
from bitexport.progress import ProgressEvent
from bitexport.system.machine import peak_rss_bytes
from bitexport.ternary import AnyTernary, TernaryTensor
from bitexport.tokenizer.missing_pre_tokenizer import MODEL_KEY, PRE_KEY, derived_pre, lacks_pre

#: bytes of a tensor that is only copied, in memory at once.
CHUNK_BYTES = 8 * 1024 * 1024

LAYER = re.compile(r"blk\.\d+\..+\.weight")
FLOATS = ("f32", "f16", "bf16")
PACKED = tuple(name for name in TERNARY_TYPES if name not in FLOATS)

#: the excess of one sign over the other, over a whole file, that no training is known to give.
MAX_EXCESS = 0.05


@dataclass(frozen=True, slots=True)
class Step:
    """One tensor of the output: where it comes from, what it becomes, and how."""

    source: GGUFTensor
    spec: TensorSpec
    ternary: bool

    @property
    def matrix(self) -> tuple[int, int]:
        """Its shape, those of experts one below the other."""
        return math.prod(self.source.shape[:-1]), self.source.shape[-1]


def convert_gguf(
    source: str | Path,
    output: str | Path,
    *,
    type: str = "i2_s",  # the command line's name for it
    embed_type: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    pre_tokenizer: str | None = None,
    strict: bool = False,
    progress: Callable[[ProgressEvent], None] | None = None,
) -> ConvertReport:
    """Convert a GGUF file of a ternary model to another ternary type. Trits never change.

    Args:
        type: of the ternary tensors, one of :data:`~bitexport.convert.plan.TERNARY_TYPES`.
        embed_type: of the embeddings and the head; they stay as they are when None.
        force, dry_run, strict, progress: as in :func:`bitexport.convert.convert`.
        pre_tokenizer: written into the file. Without it the file's own stays; where the file has none, the
            one that its vocabulary is known to go with is written, with a warning.

    Raises:
        BitexportError: see the classes in :mod:`bitexport.errors`; no output is left behind.
    """
    started = time.monotonic()
    check_choice("type", type, TERNARY_TYPES)
    if embed_type is not None:
        check_choice("embed_type", embed_type, EMBED_TYPES)
    target = Path(output)
    file = read_gguf(source)
    if not dry_run and check_output(target, force) == file.path.resolve():
        raise OutputError(f"{output} is the file that is converted; expected another name")
    warnings: list[str] = []
    steps = _steps(file, TYPES[type], TYPES[embed_type] if embed_type else None, warnings)
    metadata, changed = _metadata(file, type, embed_type, pre_tokenizer, warnings)
    work = _Work(file, steps, warnings, progress)
    specs = [step.spec for step in steps]

    def check(path: Path | None) -> None:
        if path is not None:
            read_gguf(path)
            if pre_tokenizer is not None:
                work.warnings.extend(check_loads(path, pre_tokenizer))
        if strict:
            refuse(work.health.findings())

    if dry_run:
        size = sum(spec.nbytes for spec in specs)
        for spec in specs:
            for _ in work.data(spec):
                pass
        check(None)
    else:
        architecture = str(file.metadata.get("general.architecture", ""))
        size = write_gguf(target, architecture, metadata, specs, work.data, force=force, check=check)
    findings = work.health.findings()
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    return ConvertReport(
        output=str(target),
        architecture=str(file.metadata.get("general.architecture")),
        tensors=len(steps),
        ternary_tensors=sum(step.ternary for step in steps),
        input_bytes=sum(tensor.nbytes for tensor in file.tensors),
        output_bytes=size,
        seconds=time.monotonic() - started,
        peak_rss_bytes=peak_rss_bytes(),
        warnings=[*work.warnings, *work.conclusions(), *_messages(findings)],
        packing=" and ".join(sorted({step.source.type.name for step in steps if step.ternary})),
        type=type,
        embed_type=next((s.spec.type.name for s in steps if s.spec.name == TOKEN_EMBEDDING), "none"),
        tokenizer=str(file.metadata.get(MODEL_KEY, "none")),
        pre_tokenizer=str(metadata[PRE_KEY] if PRE_KEY in changed else file.metadata.get(PRE_KEY, "none")),
        tokens=tokens.length if isinstance(tokens, Array) else 0,
        padded_tokens=0,
        dry_run=dry_run,
        types=work.rows(),
        health=findings,
        changed=list(changed.values()),
    )


def _messages(findings: Sequence[Finding]) -> list[str]:
    return [finding.message for finding in findings if finding.level == "warning"]


def _steps(
    file: GGUFFile, kind: TensorType, embed_kind: TensorType | None, warnings: list[str]
) -> list[Step]:
    """What becomes of each tensor, checked before a byte is written."""
    parts = file.metadata.get("split.count", 1)
    if parts != 1:
        raise UnsupportedError(
            f"{file.path.name} is one of {parts} parts of a model; join them first, with llama-gguf-split "
            "--merge"
        )
    layers = [tensor for tensor in file.tensors if _is_layer(tensor)]
    if not layers:
        raise GGUFError(f"{file.path.name} has no linear layers (blk.N.*.weight); is it a language model?")
    packed = any(tensor.type.name in PACKED for tensor in layers)
    listed = set(file.elements(KEPT_FLOAT_KEY)) if KEPT_FLOAT_KEY in file.metadata else set()
    kept: list[str] = []
    steps = []
    for tensor in file.tensors:
        wanted, ternary = tensor.type, False
        if tensor.name in (TOKEN_EMBEDDING, OUTPUT_HEAD):
            wanted = embed_kind or tensor.type
        elif tensor in layers and tensor.name not in listed:
            ternary = tensor.type.name in (PACKED if packed else FLOATS)
            if not ternary and not packed:
                raise UnsupportedError(
                    f"tensor '{tensor.name}' is {tensor.type.name}, which is not ternary; expected "
                    f"{', '.join((*PACKED, *FLOATS))}: convert the checkpoint instead"
                )
            if not ternary:
                kept.append(tensor.name)
            wanted = kind if ternary else tensor.type
        _check_fits(tensor, wanted, ternary)
        steps.append(Step(tensor, TensorSpec(tensor.name, tensor.shape, wanted), ternary))
    if not any(step.ternary for step in steps):
        raise UnsupportedError(
            f"{file.path.name} is a float model, as convert --float makes it: none of its linear layers is "
            "ternary; expected a ternary model: convert the checkpoint that was trained as one"
        )
    if kept:
        warnings.append(
            f"{len(kept)} linear layers are of no ternary type and stay as they are: {', '.join(kept[:3])}"
            f"{', ...' if len(kept) > 3 else ''}"
        )
    if kind is I2_S:
        warnings.extend(straddling_warnings([step.spec for step in steps]))
    return steps


def _is_layer(tensor: GGUFTensor) -> bool:
    if tensor.name in (TOKEN_EMBEDDING, OUTPUT_HEAD):
        return False
    # a type that holds nothing but trits tells by itself
    return bool(LAYER.fullmatch(tensor.name) and len(tensor.shape) > 1) or tensor.type.name in PACKED


def _check_fits(tensor: GGUFTensor, kind: TensorType, ternary: bool) -> None:
    if kind is tensor.type or (runs(kind, tensor.shape) if ternary else kind.fits(tensor.shape)):
        return
    if ternary:
        fitting = f"--type {alternatives(tensor.shape)}"
    else:
        names = [name for name in EMBED_TYPES if TYPES[name].fits(tensor.shape)]
        fitting = f"--embed-type {' or '.join(names)}"
    raise UnsupportedError(
        f"tensor '{tensor.name}' of shape {list(tensor.shape)} cannot be {kind.name}, which needs "
        f"{needs(kind)}; use {fitting}"
    )


def _metadata(
    file: GGUFFile, kind: str, embed_kind: str | None, pre_tokenizer: str | None, warnings: list[str]
) -> tuple[dict[str, MetadataValue], dict[str, str]]:
    """The keys of the output, and which of them differ from the source's, as sentences."""
    found: dict[str, MetadataValue] = {
        key: RawValue(file.raw(key)) for key in file.metadata if key != "general.architecture"
    }
    wanted: dict[str, MetadataValue] = {"general.file_type": FILE_TYPES[kind]}
    wanted.setdefault("general.quantization_version", file.metadata.get("general.quantization_version", 2))
    if "bitexport.ternary_type" in found:
        wanted["bitexport.ternary_type"] = kind
    if embed_kind and "bitexport.embedding_type" in found:
        wanted["bitexport.embedding_type"] = embed_kind
    if (pre := _pre(file, pre_tokenizer, warnings)) is not None:
        wanted[PRE_KEY] = pre
    changed: dict[str, str] = {}
    for key, value in wanted.items():
        before = file.metadata.get(key, "missing")
        if before != value:
            found[key] = value
            changed[key] = f"{key} {before} -> {value}"
    if file.metadata.get("general.alignment", ALIGNMENT) != ALIGNMENT:
        changed["general.alignment"] = (
            f"general.alignment {file.metadata['general.alignment']} -> {ALIGNMENT}"
        )
        del found["general.alignment"]
    return found, changed


def _pre(file: GGUFFile, given: str | None, warnings: list[str]) -> str | None:
    """The pre-tokenizer to write; None where the file's own stays."""
    if given is not None:
        return given
    if not lacks_pre(file):
        return None
    derived = derived_pre(file)
    if derived is None:
        warnings.append(
            f"{file.path.name} names no pre-tokenizer, and its vocabulary is unknown: the output names none "
            "either, and will not load; give llama.cpp's name of it with --pre-tokenizer"
        )
    else:
        warnings.append(
            f"{file.path.name} names no pre-tokenizer; '{derived}' is written, with which llama.cpp's table "
            "knows this vocabulary"
        )
    return derived


class _Work:
    """The tensors of a conversion, one after another, and what is learned on the way."""

    def __init__(
        self,
        file: GGUFFile,
        steps: Sequence[Step],
        warnings: list[str],
        progress: Callable[[ProgressEvent], None] | None,
    ) -> None:
        self.file = file
        self.warnings = warnings
        self.health = Health()
        self._steps = {step.spec.name: step for step in steps}
        self._progress = progress
        self._done = 0
        self._total = sum(step.source.nbytes for step in steps)
        self._plus = self._minus = 0
        self._rows: dict[tuple[str, bool], TypeRow] = {}

    def data(self, spec: TensorSpec) -> Iterator[npt.NDArray[Any]]:
        """The bytes of one tensor."""
        step = self._steps[spec.name]
        if self._progress is not None:
            self._progress(ProgressEvent(self._done, self._total, "B", spec.name))
        row = self._row(step)
        if step.ternary:
            yield self._ternary(step, row)
        elif step.spec.type is step.source.type:
            yield from self._copied(step.source)
        else:
            yield from self._requantized(step)
        self._done += step.source.nbytes

    def _copied(self, tensor: GGUFTensor) -> Iterator[npt.NDArray[np.uint8]]:
        """A tensor's bytes; read, for mapped ones would count as memory of this process."""
        with self.file.path.open("rb") as stream:
            stream.seek(tensor.offset)
            for start in range(0, tensor.nbytes, CHUNK_BYTES):
                piece = stream.read(min(CHUNK_BYTES, tensor.nbytes - start))
                yield np.frombuffer(piece, dtype=np.uint8)

    def _ternary(self, step: Step, row: TypeRow) -> npt.NDArray[np.uint8]:
        packer = PACKERS[step.spec.type.name]
        kind = step.source.type
        unpack = partial(f16.unpack, kind=kind) if kind.name in FLOATS else PACKERS[kind.name].unpack
        try:
            weights = unpack(self.file.data(step.source), step.matrix)
            packed = packer.pack(weights)
        except BitexportError as error:
            raise type(error)(f"{self.file.path.name}: tensor '{step.spec.name}': {error}") from error
        self._learn(step, weights, packer.rounding(weights), row)
        return packed

    def _learn(self, step: Step, weights: AnyTernary, rounding: float, row: TypeRow) -> None:
        if isinstance(weights, TernaryTensor):
            self.health.ternary(step.spec.name, weights)
            scales = np.atleast_1d(weights.scale)
        else:
            scales = weights.scales[weights.scales > 0]
        used, total = int(np.count_nonzero(weights.trits)), int(weights.trits.sum(dtype=np.int64))
        self._plus += (used + total) // 2
        self._minus += (used - total) // 2
        row.zero_fraction = (
            (row.zero_fraction or 0) + weights.trits.size - used
        )  # a number until all is known
        low, high = float(scales.min(initial=np.inf)), float(scales.max(initial=0))
        row.scale_min = low if row.scale_min is None else min(row.scale_min, low)
        row.scale_max = max(row.scale_max or 0.0, high)
        row.scale_rounding = max(row.scale_rounding or 0.0, rounding)

    def _requantized(self, step: Step) -> Iterator[npt.NDArray[Any]]:
        source = step.source
        if source.type.name not in FLOATS:
            self.warnings.append(
                f"'{source.name}' was rounded to {source.type.name} before, and is rounded once more, to "
                f"{step.spec.type.name}; converting the checkpoint itself loses less"
            )
        if not can_dequantize(source.type):
            raise UnsupportedError(
                f"'{source.name}' is {source.type.name}, which cannot be read back; leave out --embed-type"
            )
        for values in dequantize_rows(self.file, source):
            yield encode_float(step.spec, values, FloatFacts())

    def _row(self, step: Step) -> TypeRow:
        row = self._rows.setdefault((step.spec.type.name, step.ternary), TypeRow(step.spec.type.name))
        row.tensors += 1
        row.weights += math.prod(step.source.shape)
        row.bytes_before += step.source.nbytes
        row.bytes_after += step.spec.nbytes
        return row

    def rows(self) -> list[TypeRow]:
        """The report's table: ternary tensors first, then by size."""
        for (_, ternary), row in self._rows.items():
            row.bits_per_weight = 8 * row.bytes_after / max(row.weights, 1)
            if ternary:
                row.zero_fraction = (row.zero_fraction or 0) / row.weights
        order = sorted(self._rows, key=lambda key: (not key[1], -self._rows[key].bytes_after))
        return [self._rows[key] for key in order]

    def conclusions(self) -> list[str]:
        """Warnings that need all tensors."""
        found = []
        rounding = max((row.scale_rounding or 0.0 for row in self._rows.values()), default=0.0)
        if rounding:
            found.append(
                f"scales were rounded to float16, by up to {rounding:.2g} of their value: trits are the same,"
                " but converting back does not give the same file"
            )
        excess = abs(self._plus - self._minus) / max(self._plus + self._minus, 1)
        foreign = any(step.ternary and step.source.type is I2_S for step in self._steps.values())
        if foreign and self._plus + self._minus >= 1 << 20 and excess > MAX_EXCESS:
            found.append(
                f"{self._plus:,} weights are +1 and {self._minus:,} are -1, which is odd for a trained model:"
                " perhaps another layout that shares type number 36; check the output with bitexport run"
            )
        return found
