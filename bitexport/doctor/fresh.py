"""Compares a GGUF file with one that convert has just made of the same checkpoint.

For checkpoints that llama.cpp's own converter reads: no family says what a file must contain.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bitexport.doctor.examination import Examination
from bitexport.doctor.metadata import OPTIONAL
from bitexport.gguf.dequantize import can_dequantize, dequantize
from bitexport.gguf.reader import GGUFFile
from bitexport.reference.embeddings import ROW_ERROR


def compare_with_fresh(file: GGUFFile, fresh: GGUFFile) -> Examination:
    """In what ``file`` differs from ``fresh``, apart from the rounding of its types."""
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
            kinds = (found.type.name, expected.type.name)
            allowed = max(
                ROW_ERROR.get(kind, 0.001 if kind in _EXACT else _OTHER_ROW_ERROR) for kind in kinds
            )
            error = np.linalg.norm(values - right, axis=1)
            wrong = np.flatnonzero(~(error <= allowed * np.linalg.norm(right, axis=1) + 1e-6))
            if len(wrong):
                yield f"{found.name} differs in {len(wrong):,} of {len(right):,} rows, the first is {wrong[0]}"
    for name in in_file:
        yield f"{name} is not in the checkpoint"


#: Types that hold ternary weights up to the rounding of a scale to float16.
_EXACT = ("i2_s", "tq1_0", "tq2_0", "q2_0")


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
