"""Rejects files of other projects that are read, but not run."""

from __future__ import annotations

from bitexport.errors import UnsupportedError
from bitexport.gguf.foreign_types import FOREIGN_OF_STORAGE, ROTATION_PREFIX
from bitexport.gguf.reader import GGUFFile


def foreign_notes(file: GGUFFile) -> list[str]:
    """What keeps our libllama from running a file of another project, a sentence each; and what to do."""
    found = {tensor.type: tensor for tensor in reversed(file.tensors) if tensor.type in FOREIGN_OF_STORAGE}
    notes = [
        f"{file.path.name}: tensor '{tensor.name}' is {FOREIGN_OF_STORAGE[kind]}, which this runtime does "
        f"not run; convert the file first: bitexport convert {file.path.name} OUT.gguf"
        for kind, tensor in found.items()
    ]
    rotated = _rotation(file)
    return [rotated] if rotated else notes


def check_foreign(file: GGUFFile) -> None:
    """Reject a file of another project that is read, but not run.

    Raises:
        UnsupportedError: it has such a type, or rotated weights.
    """
    notes = foreign_notes(file)
    if notes:
        raise UnsupportedError(notes[0])


def check_rotation(file: GGUFFile) -> None:
    """Raise UnsupportedError for rotated weights, which are wrong without the rotation of their inputs."""
    rotated = _rotation(file)
    if rotated:
        raise UnsupportedError(rotated)


def _rotation(file: GGUFFile) -> str:
    key = next((key for key in file.metadata if key.startswith(ROTATION_PREFIX)), None)
    if key is None:
        return ""
    return (
        f"{file.path.name}: its weights are rotated ({key}), and only PrismML's llama.cpp rotates the "
        "activations to match; run it there, or use a model without rotation"
    )
