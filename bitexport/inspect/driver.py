"""Reads the contents of a GGUF file or a checkpoint folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitexport.checkpoint import Checkpoint, open_checkpoint
from bitexport.checkpoint.block_diffusion import BlockDiffusion, diffusion_settings
from bitexport.checkpoint.packings import keeps_float, packing_of
from bitexport.convert.plan import absent
from bitexport.errors import BitexportError, CheckpointError, GGUFError
from bitexport.families import Role, family_of
from bitexport.gguf.checks import foreign_notes
from bitexport.gguf.diffusion_settings import diffusion_of
from bitexport.gguf.packers import i2_s
from bitexport.gguf.reader import Array, GGUFFile, GGUFTensor, is_gguf_path, read_gguf
from bitexport.gguf.types import I2_S, file_type_name
from bitexport.health.scan import scan_checkpoint, scan_gguf
from bitexport.inspect.report import InspectReport, TensorRow
from bitexport.progress import Progress, ignore

#: The number of elements shown of a longer array.
MAX_SHOWN = 16


def inspect(path: str | Path, *, health: bool = False, progress: Progress = ignore) -> InspectReport:
    """Inspect a GGUF file or a checkpoint folder; without ``health`` only headers and I2_S scales are read.

    Args:
        path: the file or folder.
        health: read every tensor, and look for the signs of :data:`bitexport.health.SIGNS`.
        progress: called for every tensor that ``health`` reads.

    Raises:
        GGUFError: the file is damaged, as far as headers and scales show.
        CheckpointError: the folder is not a checkpoint, or a shard is damaged.
    """
    place = Path(path)
    if place.is_dir() or (place.is_file() and not is_gguf_path(place)):
        return _inspect_checkpoint(place, health, progress)
    return _inspect_gguf(place, health, progress)


def _inspect_gguf(path: Path, health: bool, progress: Progress) -> InspectReport:
    file = read_gguf(path)
    # an invalid scale is a finding with --health, and an error without
    findings = scan_gguf(file, progress) if health else None
    rows = [
        TensorRow(t.name, t.type.name, list(t.shape), t.nbytes, _scale(file, t, strict=not health))
        for t in file.tensors
    ]
    problems: list[str] = []
    diffusion = _diffusion(lambda: diffusion_of(file), problems)
    number = file.metadata.get("general.file_type")
    return InspectReport(
        path=str(path),
        kind="gguf",
        architecture=str(file.metadata.get("general.architecture", "unknown")),
        file_type=file_type_name(number, [row.type for row in rows])
        if isinstance(number, int)
        else "not given",
        tensors=rows,
        metadata={key: _preview(file, key) for key in file.metadata},
        total_bytes=sum(row.bytes for row in rows),
        types=dict(Counter(row.type for row in rows).most_common()),
        problems=problems,
        notes=foreign_notes(file),
        diffusion=diffusion,
        health=findings,
    )


def _scale(file: GGUFFile, tensor: GGUFTensor, *, strict: bool) -> float | None:
    if tensor.type is not I2_S:
        return None
    try:
        return float(str(i2_s.read_scale(file.data(tensor))))
    except GGUFError as error:
        if not strict:
            return None
        raise GGUFError(f"{file.path.name}: tensor '{tensor.name}': {error}") from error


def _preview(file: GGUFFile, key: str) -> Any:
    value = file.metadata[key]
    if not isinstance(value, Array):
        return value
    elements = file.elements(key, MAX_SHOWN)
    if value.length <= MAX_SHOWN:
        return elements
    return {"array_of": value.type, "length": value.length, "first": elements}


def _packing_and_problems(checkpoint: Checkpoint) -> tuple[str, list[str]]:
    """The packing's name, and the reasons why the checkpoint cannot be converted."""
    name = "unknown"
    problems = []
    packing = None
    numbers = None
    try:
        packing = packing_of(checkpoint)
        name = packing.name
    except BitexportError as error:
        problems.append(str(error))
    try:
        family = family_of(checkpoint.config, checkpoint.tensors)
        numbers = family.hyperparameters(checkpoint.config, checkpoint.tensors)
    except BitexportError as error:
        problems.append(str(error))
    if packing is not None and numbers is not None:
        try:
            claims = family.claims(numbers)
            for claim in claims:
                if not absent(checkpoint, claim):
                    packed = packing.holds(checkpoint, claim.source)
                    checkpoint.info(packing.stored_name(claim.source) if packed else claim.source)
            for claim in claims:
                if claim.role is Role.TERNARY and not keeps_float(checkpoint, claim.source):
                    packing.check(checkpoint, claim.source)
                    break  # one tensor is enough to see whether the configuration is right
        except BitexportError as error:
            name = "unknown"
            problems.append(str(error))
    return name, problems


def _diffusion(read: Callable[[], BlockDiffusion | None], problems: list[str]) -> BlockDiffusion | None:
    try:
        return read()
    except (CheckpointError, GGUFError) as error:
        problems.append(str(error))
        return None


def _inspect_checkpoint(path: Path, health: bool, progress: Progress) -> InspectReport:
    checkpoint = open_checkpoint(path)
    rows = [
        TensorRow(info.name, info.dtype.lower(), list(info.shape), info.nbytes)
        for info in checkpoint.tensors.values()
    ]
    packing, problems = _packing_and_problems(checkpoint)
    diffusion = _diffusion(lambda: diffusion_settings(checkpoint.config), problems)
    architectures = checkpoint.config.get("architectures")
    return InspectReport(
        path=str(path),
        kind="checkpoint",
        architecture=str(architectures[0])
        if isinstance(architectures, list) and architectures
        else "unknown",
        file_type=packing,
        tensors=rows,
        metadata=dict(checkpoint.config),
        total_bytes=checkpoint.nbytes,
        types=dict(Counter(row.type for row in rows).most_common()),
        problems=problems,
        diffusion=diffusion,
        health=scan_checkpoint(checkpoint, progress) if health else None,
    )
