"""Compares a GGUF file with one that convert has just made of the same checkpoint.

For checkpoints that llama.cpp's own converter reads: no family says what a file must contain.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bitexport.doctor.examination import OTHER_ROW_ERROR, Examination
from bitexport.doctor.metadata import OPTIONAL
from bitexport.gguf.dequantize import can_dequantize, dequantize
from bitexport.gguf.reader import GGUFFile
from bitexport.gguf.types import TERNARY_KINDS
from bitexport.reference.embeddings import ROW_ERROR


def compare_with_fresh(file: GGUFFile, fresh: GGUFFile) -> Examination:
    """How ``file`` differs from ``fresh``, apart from the rounding of its types."""
    return Examination([], list(_tensors(file, fresh)), list(_metadata(file, fresh)))


def _tensors(file: GGUFFile, fresh: GGUFFile) -> Iterator[str]:
    in_file = {tensor.name: tensor for tensor in file.tensors}
    for expected in fresh.tensors:
        found = in_file.pop(expected.name, None)
        if found is None:
            yield f"{expected.name} is missing from the file"
        elif found.shape != expected.shape:
            yield f"{found.name} has shape {list(found.shape)}, expected {list(expected.shape)}"
        elif not can_dequantize(found.type):
            yield f"{found.name} is {found.type.name}, which cannot be read back"
        else:
            right, values = dequantize(fresh, expected), dequantize(file, found)
            allowed = max(_allowed(found.type.name), _allowed(expected.type.name))
            error = np.linalg.norm(values - right, axis=1)
            wrong = np.flatnonzero(~(error <= allowed * np.linalg.norm(right, axis=1) + 1e-6))
            if len(wrong):
                rows = f"{len(wrong):,} of {len(right):,} rows"
                yield f"{found.name} differs in {rows}, the first is row {wrong[0]}"
    yield from (f"{name} is not in the checkpoint" for name in in_file)


def _allowed(kind: str) -> float:
    """The largest difference of a row of a type, as a fraction of its L2 norm."""
    if kind in (ternary.name for ternary in TERNARY_KINDS):
        kind = "f16"  # that of a scale
    return ROW_ERROR.get(kind, OTHER_ROW_ERROR)


def _metadata(file: GGUFFile, fresh: GGUFFile) -> Iterator[str]:
    graph = fresh.metadata["general.architecture"]
    for key, value in fresh.metadata.items():
        if key != "general.architecture" and not key.startswith(f"{graph}."):
            continue
        found = file.metadata.get(key)
        if found is None and key.removeprefix(f"{graph}.") in OPTIONAL:
            continue
        if found != value:
            yield f"{key} is {found!r}, expected {value!r}" if found is not None else f"{key} is missing"
