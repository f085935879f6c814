"""The conversion: open a source, check the output's path, encode each tensor, write, check, report."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt

from bitexport.checkpoint import Checkpoint
from bitexport.convert.choices import AUTO, EMBED_CHOICES, TYPE_CHOICES, check_choice
from bitexport.convert.encoding import TensorStatistics
from bitexport.convert.from_checkpoint import check_outside, plan_checkpoint
from bitexport.convert.from_gguf import check_another_file, plan_gguf
from bitexport.convert.from_upstream import plan_upstream
from bitexport.convert.opening import open_source
from bitexport.convert.report import ConvertReport, make_report
from bitexport.convert.source import Source, model_name
from bitexport.errors import GGUFError, NativeLibraryError, UnsupportedError, UsageError
from bitexport.families import check_runs, has_family
from bitexport.gguf.reader import is_gguf_path, read_gguf
from bitexport.gguf.types import F16, F32
from bitexport.gguf.writer import TensorSpec, check_output, write_gguf
from bitexport.health import refuse
from bitexport.progress import Progress, ProgressEvent, ignore
from bitexport.upstream import is_upstream


def convert(
    checkpoint: str | Path,
    output: str | Path,
    *,
    type: str | None = None,  # named after the option
    embed_type: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    pre_tokenizer: str | None = None,
    strict: bool = False,
    all_float: bool = False,
    master: bool = False,
    adapter: str | Path | None = None,
    pooling: str | None = None,
    progress: Progress | None = None,
) -> ConvertReport:
    """Convert a checkpoint folder to a GGUF file, or a GGUF file to one of another ternary type.

    Args:
        checkpoint: the folder or the file. The trits of a GGUF file never change.
        output: the file to write; or a folder, an existing one or one that ends in a slash, for a file in it
            that is named after the checkpoint.
        type: the type of the ternary tensors, one of :data:`~bitexport.convert.choices.TYPE_CHOICES` in
            small or capital letters. With ``"auto"`` or None, each gets the smallest type that holds its
            scales exactly.
        embed_type: the type of the embeddings and the head, one of
            :data:`~bitexport.convert.choices.EMBED_CHOICES`. If ``"auto"`` or None, a checkpoint's ternary
            ones stay ternary and others become q6_k if their rows fit, and a GGUF file keeps its type.
        force: replace ``output`` if it exists.
        dry_run: read and encode everything, write nothing. The check of the tokenizer against llama.cpp
            needs a file, so it does not run.
        pre_tokenizer: llama.cpp's name for the pre-tokenizer, if it cannot be derived. If None, a GGUF file
            keeps the one that it names.
        strict: refuse a checkpoint that shows any warning of :data:`bitexport.health.SIGNS`.
        all_float: the model is not ternary, for example a teacher: its matrices become float16, and so do
            the embeddings if ``embed_type`` is None.
        master: the float weights of the ternary layers are master weights, whatever config.json says.
        adapter: the folder of a LoRA adapter that PEFT saved, which is merged into float or master weights.
        pooling: how an embedding model makes one vector of its tokens' vectors: ``mean``, ``cls`` or
            ``last``. If None, as its sentence-transformers files say.
        progress: called for every piece of a tensor, in bytes of the source.

    Raises:
        BitexportError: see the classes in :mod:`bitexport.errors`; no output is left behind.
    """
    started = time.monotonic()
    target = output_file(checkpoint, output)
    type, embed_type = (each and each.lower() for each in (type, embed_type))
    source: Source[Any]
    from_file = is_gguf_path(checkpoint)
    if from_file:
        if all_float:
            raise UsageError(f"--float is for a checkpoint, and {checkpoint} is a file; expected a folder")
        if master or adapter is not None:
            option = "--master" if master else "--adapter"
            raise UsageError(f"{option} is for a checkpoint, and {checkpoint} is a file; expected a folder")
        if pooling is not None:
            raise UsageError(f"--pooling is for a checkpoint, and {checkpoint} is a file; expected a folder")
        type = type or AUTO
        _check_types(type, embed_type)
        embed_type = None if embed_type == AUTO else embed_type
        file = read_gguf(checkpoint)
        if not dry_run:
            check_another_file(file, target, check_output(target, force))
        source = plan_gguf(file, type, embed_type, pre_tokenizer, progress or ignore)
    else:
        type, embed_type = _checkpoint_types(type, embed_type, all_float)
        if master and all_float:
            raise UsageError("--master with --float; expected one of them: master weights become ternary")
        opened = open_source(checkpoint, adapter=adapter, master=master, all_float=all_float)
        if not dry_run:
            check_outside(opened, target, check_output(target, force))
        source = _plan(opened, type, embed_type, pre_tokenizer, pooling, all_float, progress or ignore)
    report = convert_source(
        source,
        target,
        force=force,
        dry_run=dry_run,
        strict=strict,
        progress=progress or ignore,
        started=started,
    )
    if not (dry_run or from_file):
        _trust(target)
    return report


def _trust(path: Path) -> None:
    """Spare a new file the trial of files from elsewhere, if it passes the checks."""
    from bitexport.runtime.trial import trust

    # otherwise it is checked and tried like any other when it is opened
    with contextlib.suppress(GGUFError, NativeLibraryError):
        trust(read_gguf(path))


def output_file(checkpoint: str | Path, output: str | Path) -> Path:
    """The file that ``output`` means: itself, or in a folder one with the name of the checkpoint."""
    target = Path(output)
    if not _is_folder(output):
        return target
    source = Path(checkpoint)
    # the hub's cache has links to files that are named after their digests
    return target / f"{source.stem if source.is_file() else model_name(source)}.gguf"


def check_early(output: str | Path, force: bool) -> None:
    """Check ``output`` before the checkpoint is downloaded, unless its name follows from the checkpoint's.

    Raises:
        OutputError: see :func:`bitexport.gguf.writer.check_output`.
    """
    if not _is_folder(output):
        check_output(Path(output), force)


def _is_folder(output: str | Path) -> bool:
    return Path(output).is_dir() or os.fspath(output).endswith(("/", os.sep))


def _plan(
    checkpoint: Checkpoint,
    type: str,
    embed_type: str,
    pre_tokenizer: str | None,
    pooling: str | None,
    all_float: bool,
    progress: Progress,
) -> Source[Any]:
    """The checkpoint as a source: by hand where a family runs it, otherwise as llama.cpp's converter says."""
    options = (type, embed_type, pre_tokenizer)
    try:
        check_runs(checkpoint.config, checkpoint.tensors)
    except UnsupportedError as error:
        by_hand = error
    else:
        return plan_checkpoint(checkpoint, *options, pooling=pooling, all_float=all_float, progress=progress)
    known = has_family(checkpoint.config)
    try:
        if not is_upstream(checkpoint.config):
            raise by_hand
    except NativeLibraryError as error:
        if known:
            raise by_hand from None
        raise NativeLibraryError(f"{by_hand}; or {error}") from error
    try:
        return plan_upstream(checkpoint, *options, all_float=all_float, progress=progress)
    except UnsupportedError:
        if known:
            # what our graph lacks is the better reason: llama.cpp's own has no SubLN at all
            raise by_hand from None
        raise


def _checkpoint_types(type: str | None, embed_type: str | None, all_float: bool) -> tuple[str, str]:
    """The types of a checkpoint's ternary tensors and embeddings, with the defaults."""
    if all_float and type not in (None, AUTO, F16.name):
        raise UsageError(f"--float with --type {type}; expected no --type: the matrices become {F16.name}")
    type = F16.name if all_float else type or AUTO
    embed_type = embed_type or (F16.name if all_float else AUTO)
    _check_types(type, embed_type)
    return type, embed_type


def _check_types(type: str, embed_type: str | None) -> None:
    check_choice("type", type, TYPE_CHOICES)
    if embed_type is not None:
        check_choice("embed_type", embed_type, EMBED_CHOICES)


def convert_source(
    source: Source[Any],
    output: Path,
    *,
    force: bool = False,
    dry_run: bool = False,
    strict: bool = False,
    progress: Progress = ignore,
    started: float | None = None,
) -> ConvertReport:
    """Encode and write every tensor of a source; arguments and errors as in :func:`convert`.

    Args:
        started: the ``time.monotonic()`` from which the report counts seconds; now if None.
    """
    started = time.monotonic() if started is None else started
    conversion = Conversion(source, progress)
    warnings: list[str] = []

    def check(path: Path) -> None:
        if strict:
            refuse(source.health.findings())
        warnings.extend(source.check_written(path))

    if dry_run:
        size = conversion.discard()
        if strict:
            refuse(source.health.findings())
    else:
        size = write_gguf(
            output,
            source.architecture,
            source.metadata,
            conversion.specs,
            conversion.encode_tensor,
            force=force,
            check=check,
        )
    return make_report(
        source,
        conversion.statistics,
        output=output,
        output_bytes=size,
        seconds=time.monotonic() - started,
        warnings=warnings,
        dry_run=dry_run,
    )


class Conversion:
    """Encodes the tensors of a source and collects their statistics.

    Attributes:
        specs: the tensors of the output, in order.
        statistics: those of each tensor encoded so far, by its name in the output.
    """

    def __init__(self, source: Source[Any], progress: Progress) -> None:
        self.specs = [TensorSpec(name, values.shape, F32) for name, values in source.extra_tensors.items()]
        self.specs += [tensor.spec for tensor in source.tensors]
        self.statistics: dict[str, TensorStatistics] = {}
        self._source = source
        self._planned = {tensor.spec.name: tensor for tensor in source.tensors}
        self._progress = progress
        self._done_bytes = 0
        self._total_bytes = sum(tensor.source_bytes for tensor in source.tensors)

    def encode_tensor(self, spec: TensorSpec) -> Iterator[npt.NDArray[Any]]:
        """The bytes of one tensor, in pieces."""
        if spec.name in self._source.extra_tensors:
            yield self._source.extra_tensors[spec.name]
            return
        tensor = self._planned[spec.name]
        statistics = TensorStatistics()
        written = 0
        self._report(spec.name, 0)
        for piece in self._source.encode_tensor(tensor, statistics):
            yield piece
            # an embedding is half of a small model: the bar has to move while it is written
            written += piece.nbytes
            self._report(spec.name, tensor.source_bytes * written // max(spec.nbytes, 1))
        self.statistics[spec.name] = statistics
        self._done_bytes += tensor.source_bytes

    def discard(self) -> int:
        """Encode every tensor and keep nothing; returns how many bytes their data would take."""
        for spec in self.specs:
            for _ in self.encode_tensor(spec):
                pass
        return sum(spec.nbytes for spec in self.specs)

    def _report(self, name: str, source_bytes: int) -> None:
        """Report progress: the bytes of finished tensors and ``source_bytes`` of the current one."""
        label = f"{len(self.statistics)}/{len(self._planned)} {name}"
        self._progress(ProgressEvent(self._done_bytes + source_bytes, self._total_bytes, "B", label))
