"""Block scales: shared by the types that store a float16 scale for every block of a row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitexport.errors import GGUFScaleError, UnsupportedError
from bitexport.gguf.types import Q2_0, TensorType, alternatives
from bitexport.ternary import AnyTernary, GroupedTernary, TernaryTensor, collapse_equal_scales

#: Blocks processed at once, few enough that their codes stay in the CPU's caches.
CHUNK_BLOCKS = 2048

#: :attr:`Packer.scale_text` of these types.
SCALE_TEXT = "float16, one per block; the report gives the rounding error"


def rounded_scale(scale: np.float32, type_name: str) -> np.float16:
    """The scale rounded to float16.

    Raises:
        UnsupportedError: it would become zero or infinite.
    """
    with np.errstate(over="ignore", under="ignore"):
        rounded = np.float16(scale)
    if not np.isfinite(rounded) or rounded == 0:
        raise UnsupportedError(
            f"scale {scale!s} becomes {rounded!s} in the float16 of {type_name}; use --type auto, "
            "which chooses a type that stores float32"
        )
    return rounded


#: The smallest scale that float16 rounds by at most 2^-8 of its value, as bfloat16 does: its subnormal
#: numbers are multiples of 2^-24.
MIN_SCALE = 2.0**-17


def fits_float16(low: float, high: float) -> bool:
    """Whether float16 can hold scales from ``low`` to ``high``.

    None may become infinite or be smaller than :data:`MIN_SCALE`, except for float16's own numbers.
    """
    with np.errstate(over="ignore", under="ignore"):
        return bool(np.isfinite(np.float16(high)) and (low >= MIN_SCALE or float(np.float16(low)) == low))


def check_rows(tensor: AnyTernary, kind: TensorType) -> None:
    """Raise UnsupportedError when a row is not a whole number of blocks."""
    if not kind.fits(tensor.trits.shape):
        raise UnsupportedError(
            f"rows of {tensor.trits.shape[-1]} are not a multiple of {kind.block}, which {kind.name} needs; "
            f"use --type {alternatives(tensor.trits.shape)}"
        )


def block_scales(tensor: AnyTernary, kind: TensorType) -> npt.NDArray[np.float16]:
    """The scale of every block of ``kind``, float16 ``[blocks]``; 0 for a block of zeros, as in ggml.

    Raises:
        UnsupportedError: float16 cannot hold a scale, or a block would need two scales.
    """
    if isinstance(tensor, TernaryTensor):
        scale = rounded_scale(tensor.scale, kind.name)
        used = np.any(tensor.trits.reshape(-1, kind.block), axis=1)
        return np.where(used, scale, np.float16(0)).astype("<f2")
    scales = _regrouped(tensor, kind)
    for scale in np.unique(scales):
        if scale:
            rounded_scale(scale, kind.name)
    return scales.astype("<f2")


def _regrouped(tensor: GroupedTernary, kind: TensorType) -> npt.NDArray[np.float32]:
    """The scales of a grouped tensor, one per block of ``kind``."""
    group = tensor.group
    if group % kind.block == 0:
        return np.repeat(tensor.scales, group // kind.block, axis=1).reshape(-1)
    if kind.block % group == 0:
        scales = tensor.scales.reshape(-1, kind.block // group)
        largest: npt.NDArray[np.float32] = scales.max(axis=1)
        if np.all((scales == largest[:, None]) | (scales == 0)):
            return largest
    raise UnsupportedError(
        f"its scale changes every {group} weights, but {kind.name} has one scale per {kind.block} weights; "
        f"use --type {alternatives(tensor.trits.shape, group)}"
    )


def stored_scales(data: npt.NDArray[np.uint8], kind: TensorType) -> npt.NDArray[np.float32]:
    """The scale of every block in a tensor's bytes, float32 ``[blocks]``, without reading the codes."""
    blocks = data.reshape(-1, kind.block_bytes)
    place = blocks[:, :2] if kind is Q2_0 else blocks[:, -2:]
    return np.ascontiguousarray(place).view("<f2").reshape(-1).astype(np.float32)


def check_two_bit(codes: npt.NDArray[np.uint8]) -> None:
    """Raise UnsupportedError if a code is 3, which ggml reads as twice the scale.

    Args:
        codes: bytes of four codes each.
    """
    if np.any(codes & (codes >> np.uint8(1)) & np.uint8(0x55)):
        raise UnsupportedError(
            "it contains a code of 3, twice the scale, so it is not ternary; convert the model elsewhere"
        )


def from_blocks(
    codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float16], shape: tuple[int, int], kind: TensorType
) -> AnyTernary:
    """Assemble a tensor of ``shape`` ``[out, in]`` from its blocks.

    Args:
        codes: trits, int8 ``[blocks, block]``; those of blocks with scale 0 are set to 0.
        scales: the scale of each block, float16 ``[blocks]``.

    Raises:
        GGUFScaleError: a scale is negative, NaN or infinite.
    """
    wrong = ~np.isfinite(scales) | (scales < 0)
    if wrong.any():
        raise GGUFScaleError(
            f"block {int(np.argmax(wrong))} of {kind.name} has scale {scales[np.argmax(wrong)]}; expected a "
            "positive, finite number: the file is damaged, convert or download it again"
        )
    codes[scales == 0] = 0  # their value is 0 whatever the trit
    used = np.any(codes, axis=1)
    exact = np.where(used, scales.astype(np.float32), np.float32(0))
    return collapse_equal_scales(codes.reshape(shape), exact.reshape(shape[0], -1))
