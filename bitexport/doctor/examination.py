"""The tensors: how much of their norm quantization keeps, and whether a GGUF file matches the checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitexport.convert.from_checkpoint import float_rows
from bitexport.convert.plan import Plan
from bitexport.convert.source import PlannedTensor
from bitexport.doctor.metadata import metadata_differences
from bitexport.families import Claim
from bitexport.gguf.dequantize import dequantize
from bitexport.gguf.packers import i2_s
from bitexport.gguf.reader import GGUFFile, GGUFTensor
from bitexport.gguf.types import I2_S
from bitexport.reference.embeddings import ROW_ERROR
from bitexport.ternary import AnyTernary, GroupedTernary, TernaryTensor, frobenius_norm, reordered

#: The largest error of a row of a type that is not in ROW_ERROR, as a fraction of its norm.
OTHER_ROW_ERROR = 0.1

#: The largest relative error of a scale: I2_S stores float32, the other ternary types float16.
FLOAT32_ERROR = 1e-6
FLOAT16_ERROR = 1e-3

#: The step between the smallest numbers of float16.
SMALLEST_FLOAT16 = 2.0**-24


@dataclass(frozen=True, slots=True)
class Norm:
    """The Frobenius norm of one ternary tensor, before and after quantization.

    Attributes:
        name: in the checkpoint.
        before: of the master weights; None if the checkpoint has none.
        after: of the trits times the scale.
    """

    name: str
    before: float | None
    after: float

    @property
    def ratio(self) -> float | None:
        """The fraction that quantization keeps, 0.66 for Gaussian weights; None without master weights."""
        return self.after / self.before if self.before else None

    @property
    def layer(self) -> str:
        """The number of its layer; empty for a tensor outside the layers."""
        found = re.search(r"layers\.(\d+)\.", self.name)
        return found[1] if found else ""

    @property
    def kind(self) -> str:
        """The tensor's name within its layer, such as ``mlp.up_proj``."""
        return re.sub(r"^.*layers\.\d+\.", "", self.name.removesuffix(".weight"))


@dataclass(frozen=True, slots=True)
class Examination:
    """What reading every tensor once has shown.

    Attributes:
        norms: of the ternary tensors, in the order of the file.
        differences: tensors in which the file differs from the checkpoint, as clauses.
        metadata: hyper-parameters in which the file differs from the checkpoint, as clauses.
    """

    norms: list[Norm]
    differences: list[str]
    metadata: list[str]


def examine(plan: Plan, file: GGUFFile | None) -> Examination:
    """Read every tensor of the checkpoint once, and compare it with the file's, if there is a file.

    Raises:
        CheckpointError, GGUFError: a tensor cannot be read.
    """
    norms: list[Norm] = []
    differences: list[str] = []
    in_file = {tensor.name: tensor for tensor in file.tensors} if file else {}
    expected = {tensor.spec.name for tensor in plan.tensors}
    for tensor in plan.tensors:
        found = in_file.get(tensor.spec.name)
        if file is not None and found is None:
            differences.append(f"{tensor.spec.name} is missing from the file")
        elif found is not None and found.shape != tensor.spec.shape:
            differences.append(
                f"{found.name} has shape {list(found.shape)}, expected {list(tensor.spec.shape)}"
            )
            found = None
        difference = _examine(plan, tensor, file, found, norms)
        if difference:
            differences.append(f"{tensor.spec.name} {difference}")
    extra = plan.family.extra_tensors(plan.numbers)
    differences += [
        f"{name} is not in the checkpoint" for name in sorted(in_file.keys() - expected - extra.keys())
    ]
    if file is not None:
        for name, values in extra.items():
            if name not in in_file or not np.allclose(dequantize(file, in_file[name]), values, FLOAT32_ERROR):
                differences.append(f"{name} is missing or differs")
    return Examination(norms, differences, metadata_differences(plan, file) if file else [])


def _examine(
    plan: Plan,
    tensor: PlannedTensor[Claim],
    file: GGUFFile | None,
    found: GGUFTensor | None,
    norms: list[Norm],
) -> str | None:
    """Append a ternary tensor's norms to ``norms``; how the file's tensor differs, as a clause, or None."""
    name = tensor.origin.source
    if tensor.ternary:
        weights = plan.packing.unpack(plan.checkpoint, name)
        after = frobenius_norm(weights)
        before = None
        if plan.packing.name == "master" and isinstance(weights, TernaryTensor) and not weights.dequantized:
            before = float(np.sqrt(np.square(plan.checkpoint.read(name), dtype=np.float64).sum()))
        norms.append(Norm(name, before, float(after)))
        order = plan.family.row_order(tensor.origin, plan.numbers)
        return _ternary_difference(weights if order is None else reordered(weights, order), file, found)
    return _float_difference(float_rows(plan, tensor), file, found)


def _ternary_difference(expected: AnyTernary, file: GGUFFile | None, found: GGUFTensor | None) -> str | None:
    if file is None or found is None:
        return None
    if found.type is I2_S:
        tensor = i2_s.unpack(file.data(found), (found.shape[0], found.shape[1]))
        trits = tensor.trits
        scale = float(tensor.scale)
        allowed = FLOAT32_ERROR
    else:
        values = dequantize(file, found)
        scale, allowed = float(np.abs(values).max(initial=0)), FLOAT16_ERROR
        trits = np.sign(values).astype(np.int8)
    wrong = int(np.count_nonzero(trits != expected.trits))
    if wrong:
        return f"differs in {wrong:,} of {expected.trits.size:,} trits"
    if isinstance(expected, GroupedTernary):
        error = np.abs(dequantize(file, found).reshape(trits.shape) - (exact := expected.dequantize()))
        if (error > FLOAT16_ERROR * np.abs(exact) + SMALLEST_FLOAT16).any():
            return f"has other scales: a value differs by {float(error.max()):.3g}"
        return None
    right_scale = float(expected.scale)
    if expected.trits.any() and not abs(scale - right_scale) <= allowed * right_scale:
        factor = scale / right_scale
        return f"has scale {scale:.6g}, {factor:.4g} times the checkpoint's {right_scale:.6g}"
    return None


def _float_difference(
    chunks: Iterator[npt.NDArray[np.float32]], file: GGUFFile | None, found: GGUFTensor | None
) -> str | None:
    """Compare row by row; ``chunks`` are the checkpoint's rows in order."""
    if file is None or found is None:
        return None
    in_file = dequantize(file, found).reshape(found.shape)
    start = 0
    for chunk in chunks:
        rows = len(chunk)
        expected = chunk.reshape(rows, -1)
        error = np.linalg.norm(in_file[start : start + rows].reshape(rows, -1) - expected, axis=1)
        allowed = ROW_ERROR.get(found.type.name, OTHER_ROW_ERROR) * np.linalg.norm(expected, axis=1) + 1e-6
        wrong = np.flatnonzero(~(error <= allowed))
        if len(wrong):
            row = int(wrong[0])
            norm = float(np.linalg.norm(expected[row]))
            by = f"by {float(error[row]) / norm:.1%}" if norm else "from zero"
            what = "row" if len(found.shape) > 1 else "value"
            return f"differs: {what} {start + row} is off {by}, more than {found.type.name} explains"
        start += rows
    return None
