"""On which grid each side rounds the activations of the ternary layers."""

from __future__ import annotations

import os
from dataclasses import dataclass

from bitexport.gguf.reader import read_gguf
from bitexport.reference import Reference
from bitexport.reference.grids import GRIDS, Grid
from bitexport.reference.ternary_layers import training_grids


@dataclass(frozen=True, slots=True)
class ActivationGrids:
    """The names of the grids, in :class:`~bitexport.reference.grids.Grid`; several if layers differ.

    Attributes:
        python: as the model was trained, and as PyTorch runs it unmodified.
        cpp: as the types of the file's weights have it, and as PyTorch runs it aligned.
    """

    python: str
    cpp: str

    def describe(self) -> str:
        """Both as a sentence without its full stop."""
        if self.python == self.cpp:
            return f"activations of ternary layers: {self.cpp}, on both sides"
        return (
            f"activations of ternary layers: {self.cpp} in C++ and in PyTorch when aligned, "
            f"{self.python} in PyTorch otherwise"
        )


def activation_grids(reference: Reference, path: str | os.PathLike[str]) -> ActivationGrids:
    """The grids of a model and of the file made from it."""
    layers = reference.ternary_layers()
    types = {tensor.name: tensor.type.name for tensor in read_gguf(os.fspath(path)).tensors}
    in_file = {GRIDS.get(types[name]) for name in layers if name in types}
    return ActivationGrids(_names(training_grids(layers.values())), _names(in_file))


def _names(grids: set[Grid] | set[Grid | None]) -> str:
    return " and ".join(sorted("unknown" if grid is None else grid.value for grid in grids)) or "none"
