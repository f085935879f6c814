"""The result of ``bitexport inspect``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from bitexport.checkpoint.block_diffusion import BlockDiffusion
from bitexport.health import Finding


@dataclass(frozen=True, slots=True)
class TensorRow:
    """A tensor: its shape, outermost first; its bytes, without padding; for I2_S, its scale."""

    name: str
    type: str
    shape: list[int]
    bytes: int
    scale: float | None = None


@dataclass(frozen=True, slots=True)
class InspectReport:
    """What was found.

    Attributes:
        path: the file or folder.
        kind: ``gguf`` or ``checkpoint``.
        architecture: the GGUF file's, or the class in config.json.
        file_type: its name; for a checkpoint, its packing.
        tensors: in the order of the file.
        metadata: GGUF keys, with long arrays shortened; for a checkpoint, config.json.
        total_bytes: of all tensors.
        types: number of tensors of each type.
        problems: why a checkpoint cannot be converted, or a file not be run, as far as the headers show.
        notes: why a file of another project does not run as it is, and what to do.
        diffusion: how a model of block diffusion is decoded; None for any other.
        health: signs of a bad checkpoint; None if they were not requested.
    """

    path: str
    kind: str
    architecture: str
    file_type: str
    tensors: list[TensorRow]
    metadata: dict[str, Any]
    total_bytes: int
    types: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    diffusion: BlockDiffusion | None = None
    health: list[Finding] | None = None

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object, without ``schema``."""
        return asdict(self)
