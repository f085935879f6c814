"""The result of ``bitexport inspect``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from bitexport.health import Finding


@dataclass(frozen=True, slots=True)
class TensorRow:
    """A tensor: its shape outermost first, its bytes without padding, and the scale of an I2_S tensor."""

    name: str
    type: str
    shape: list[int]
    bytes: int
    scale: float | None = None


@dataclass(frozen=True, slots=True)
class InspectReport:
    """What was found.

    Attributes:
        path: what was looked at.
        kind: ``gguf`` or ``checkpoint``.
        architecture: the GGUF's, or the class in config.json.
        file_type: by name; for a checkpoint, its packing.
        tensors: in the order of the file.
        metadata: GGUF keys, long arrays shortened; for a checkpoint, config.json.
        types: how many tensors of each type there are.
        problems: why a checkpoint could not be converted, as far as its headers tell.
        health: signs of a bad checkpoint; None when they were not looked for.
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
    health: list[Finding] | None = None

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object, without ``schema``."""
        return asdict(self)
