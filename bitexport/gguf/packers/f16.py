"""Float types that hold ternary values: writes float16, reads float16, bfloat16 and float32.

Each weight is -a, 0 or a, where a is the scale: rounded to float16 when written, exact when read.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt

from bitexport.errors import UnsupportedError
from bitexport.gguf.packers.base import UPSTREAM, Packer
from bitexport.gguf.packers.block_scale import rounded_scale
from bitexport.gguf.types import F16, F32, TensorType
from bitexport.ternary import GROUP_SIZES, STEPS, AnyTernary, TernaryTensor, common_magnitudes, grouped

#: Weights processed at once.
CHUNK_WEIGHTS = 1 << 20

#: The smallest group of weights with one scale that is recognised; larger groups consist of several.
GROUP = GROUP_SIZES[-1]


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
        values = trits[start : start + rows].astype(np.float16)
        grouped = values.reshape(len(values), scales.shape[1], -1)
        grouped *= scales[start : start + rows, :, None]
        packed[start : start + rows] = values
    return packed.view(np.uint8).reshape(-1)


def pack_f32(tensor: AnyTernary) -> npt.NDArray[np.uint8]:
    """The bytes of the values in float32: uint8 ``[4 n]``."""
    return tensor.dequantize().astype("<f4", copy=False).view(np.uint8).reshape(-1)


def _unpack_rounded(stored: npt.NDArray[np.uint8], columns: int, kind: TensorType) -> AnyTernary | None:
    """Trits and scales of groups whose magnitudes may differ by one step of the type; None if by more.

    Args:
        stored: the tensor's bytes ``[out, ...]``.
    """
    step = STEPS.get(kind.name.upper())
    if step is None:
        return None
    rows = max(1, CHUNK_WEIGHTS // columns)
    for size in (columns, *GROUP_SIZES):
        if size > columns or columns % size:
            continue
        trits = np.empty((len(stored), columns), dtype=np.int8)
        scales = np.empty((len(stored), columns // size), dtype=np.float32)
        for start in range(0, len(stored), rows):
            values = float_values(stored[start : start + rows], kind).reshape(-1, columns)
            common, fits = common_magnitudes(values.reshape(-1, size), step)
            if not fits.all() or not np.isfinite(common).all():
                break
            scales[start : start + rows] = common.reshape(len(values), -1)
            trits[start : start + rows] = np.sign(values)
        else:
            return grouped(trits, scales)
    return None


def unpack(data: npt.NDArray[np.uint8], shape: tuple[int, int], kind: TensorType = F16) -> AnyTernary:
    """Bytes of a float tensor of ``shape`` ``[out, in]`` whose values are ternary, to trits and scales.

    Raises:
        UnsupportedError: the values are not ternary: a row (where rows are a multiple of 32, a group of 32
            weights) has nonzero magnitudes more than one step of the type apart, NaN or infinity.
    """
    out, columns = shape
    group = GROUP if columns % GROUP == 0 else columns
    trits = np.empty((out, columns // group, group), dtype=np.int8)
    scales = np.empty((out, columns // group), dtype=np.float32)
    stored = data.reshape(out, -1)
    rows = max(1, CHUNK_WEIGHTS // columns)
    for start in range(0, out, rows):
        values = float_values(stored[start : start + rows], kind).reshape(-1, columns // group, group)
        magnitudes = np.abs(values)
        largest = magnitudes.max(axis=2)
        others = (magnitudes != 0) & (magnitudes != largest[:, :, None])
        if others.any() or not np.isfinite(largest).all():
            if (found := _unpack_rounded(stored, columns, kind)) is not None:
                return found
            raise UnsupportedError(_not_ternary(magnitudes, largest, others))
        scales[start : start + rows] = largest
        trits[start : start + rows] = np.sign(values)
    return grouped(trits.reshape(shape), scales)


PACKER = Packer(
    type=F16,
    pack=pack,
    unpack=unpack,
    scale_type=np.float16,
    scale_text="in the values, rounded to float16",
    runs_in=UPSTREAM,
)

#: For scales that float16 cannot hold. ``--type`` does not offer it; ``--type auto`` may choose it.
F32_PACKER = Packer(
    type=F32,
    pack=pack_f32,
    unpack=partial(unpack, kind=F32),
    scale_type=np.float32,
    scale_text="in the values, exact",
    runs_in=UPSTREAM,
)


def float_values(data: npt.NDArray[np.uint8], kind: TensorType) -> npt.NDArray[np.float32]:
    """The values of some rows' bytes, uint8 ``[rows, bytes]``: float32 ``[rows, columns]``."""
    if kind.name == "bf16":
        halves = np.ascontiguousarray(data).view("<u2").astype(np.uint32)
        return (halves << np.uint32(16)).view(np.float32)
    plain = {"f16": "<f2", "f32": "<f4"}[kind.name]
    return np.ascontiguousarray(data).view(plain).astype(np.float32)


def _not_ternary(
    magnitudes: npt.NDArray[np.float32], largest: npt.NDArray[np.float32], others: npt.NDArray[np.bool_]
) -> str:
    if not others.any():
        return "it contains NaN or infinity and is not ternary; the file is damaged, convert it again"
    row, group, _ = np.argwhere(others)[0]
    return (
        f"it is not ternary: one group of weights contains both {magnitudes[others][0]:.6g} and "
        f"{largest[row, group]:.6g}; expected only -a, 0 and a: convert the checkpoint instead"
    )
