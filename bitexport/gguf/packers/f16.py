"""Ternary values in a float type: float16 written, float16, bfloat16 and float32 read.

Each weight is -a, 0 or a, where a is the scale: rounded to float16 when written, exact when read.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitexport.errors import UnsupportedError
from bitexport.gguf.packers.block_scale import rounded_scale
from bitexport.gguf.types import F16, TensorType
from bitexport.ternary import AnyTernary, TernaryTensor, collapse_equal_scales

#: weights handled at once.
CHUNK_WEIGHTS = 1 << 20

#: the smallest group that is looked for; larger ones are made of it.
GROUP = 64


def pack(tensor: AnyTernary) -> npt.NDArray[np.uint8]:
    """The bytes of the values in float16: uint8 ``[2 n]``.

    Raises:
        UnsupportedError: float16 cannot hold a scale.
    """
    trits = tensor.trits
    packed = np.empty(trits.shape, dtype="<f2")
    if isinstance(tensor, TernaryTensor):
        scales = np.full((len(trits), 1), rounded_scale(tensor.scale, F16.name))
    else:
        for scale in np.unique(tensor.scales):
            if scale:
                rounded_scale(scale, F16.name)
        scales = tensor.scales.astype(np.float16)
    rows = max(1, CHUNK_WEIGHTS // trits.shape[1])
    for start in range(0, len(trits), rows):
        part = trits[start : start + rows].astype(np.float16)
        grouped = part.reshape(len(part), scales.shape[1], -1)
        grouped *= scales[start : start + rows, :, None]
        packed[start : start + rows] = part
    return packed.view(np.uint8).reshape(-1)


def unpack(data: npt.NDArray[np.uint8], shape: tuple[int, int], kind: TensorType = F16) -> AnyTernary:
    """Bytes of a float tensor of ``shape`` ``[out, in]`` whose values are ternary, to trits and scales.

    Raises:
        UnsupportedError: they are not: neither the tensor, nor its rows, nor groups of 64 in them hold one
            magnitude beside zero.
    """
    out, columns = shape
    group = GROUP if columns % GROUP == 0 else columns
    trits = np.empty((out, columns // group, group), dtype=np.int8)
    scales = np.empty((out, columns // group), dtype=np.float32)
    stored = data.reshape(out, -1)
    rows = max(1, CHUNK_WEIGHTS // columns)
    for start in range(0, out, rows):
        part = _values(stored[start : start + rows], kind).reshape(-1, columns // group, group)
        magnitudes = np.abs(part)
        top = magnitudes.max(axis=2)
        odd = (magnitudes != 0) & (magnitudes != top[:, :, None])
        if odd.any() or not np.isfinite(top).all():
            raise UnsupportedError(_not_ternary(magnitudes, top, odd))
        scales[start : start + rows] = top
        trits[start : start + rows] = np.sign(part)
    return collapse_equal_scales(trits.reshape(shape), scales)


def _values(data: npt.NDArray[np.uint8], kind: TensorType) -> npt.NDArray[np.float32]:
    if kind.name == "bf16":
        halves = np.ascontiguousarray(data).view("<u2").astype(np.uint32)
        return (halves << np.uint32(16)).view(np.float32)
    plain = {"f16": "<f2", "f32": "<f4"}[kind.name]
    return np.ascontiguousarray(data).view(plain).astype(np.float32)


def _not_ternary(
    magnitudes: npt.NDArray[np.float32], top: npt.NDArray[np.float32], odd: npt.NDArray[np.bool_]
) -> str:
    if not odd.any():
        return "it holds NaN or infinity, and so is not ternary; the file is damaged, convert it again"
    row, group, _ = np.argwhere(odd)[0]
    return (
        f"it is not ternary: {magnitudes[odd][0]:.6g} and {top[row, group]:.6g} stand in one group of "
        "weights; expected -a, 0 and a only: convert the checkpoint instead"
    )
