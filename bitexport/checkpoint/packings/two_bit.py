"""The bytes of transformers' packed ternary weights, shared by both packed packings.

A weight ``[out, in]`` is stored as uint8 ``[out / 4, in]``. Bits 2k+1 and 2k of byte (r, c) are the trit plus
one of row ``k * (out / 4) + r``, column c. A checkpoint that was loaded and saved again may have the trits
themselves instead, ``[out, in]`` in a float type or int8. The two packings differ only in the meaning of
``weight_scale``, which the subclasses of :class:`TwoBit` in packed_multiply.py and packed_divide.py add.

transformers stores one scale per tensor; other tools store ``weight_scale`` as ``[out]`` or ``[out, 1]``, one
per row, or as ``[out, in / g]``, one per group of g columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from bitexport.checkpoint.packings.base import PackingDefaults, Scales
from bitexport.checkpoint.packings.stored_scales import checked_scales, per_row, scales_of
from bitexport.checkpoint.reader import FLOAT_DTYPES, Checkpoint
from bitexport.errors import CheckpointError, UnsupportedError
from bitexport.ternary import AnyTernary, grouped

#: dtypes of trits that were saved as numbers.
TRIT_DTYPES = (*FLOAT_DTYPES, "I8")


class TwoBit(PackingDefaults, ABC):
    """A :class:`Packing` except for its name, its descriptions and the meaning of the scale."""

    def holds(self, checkpoint: Checkpoint, weight_name: str) -> bool:
        """Whether there is a ``weight_scale``."""
        return scale_name(weight_name) in checkpoint.tensors

    def partners(self, weight_name: str) -> tuple[str, ...]:
        """The weight's ``weight_scale``."""
        return (scale_name(weight_name),)

    def stored_shape(
        self, checkpoint: Checkpoint, weight_name: str, shape: tuple[int, int]
    ) -> tuple[int, ...]:
        """``[out / 4, in]``, or the weight's own shape if its trits are not packed."""
        return shape if is_unpacked(checkpoint, weight_name) else packed_shape(shape)

    def check(self, checkpoint: Checkpoint, weight_name: str) -> None:
        """The weight must be packed in uint8, or trits, and have a float scale."""
        check_packed(checkpoint, weight_name)

    def scales(self, checkpoint: Checkpoint, weight_name: str) -> Scales:
        """The groups of one weight; only its scales are read."""
        return scales_of(self._scales(checkpoint, weight_name), checkpoint.info(weight_name).shape[1])

    def unpack(self, checkpoint: Checkpoint, weight_name: str) -> AnyTernary:
        """Read one weight."""
        stored = checkpoint.read(weight_name)
        unpacked = is_unpacked(checkpoint, weight_name)
        trits = saved_trits(stored, weight_name) if unpacked else unpack_trits(stored, weight_name)
        return grouped(trits, self._scales(checkpoint, weight_name))

    def _scales(self, checkpoint: Checkpoint, weight_name: str) -> npt.NDArray[np.float32]:
        """The scales (value = trit * scale), ``[out, n]``, or ``[1, 1]`` if there is one."""
        stored = checked_scales(read_scales(checkpoint, weight_name), scale_name(weight_name))
        with np.errstate(over="ignore", divide="ignore"):
            return checked_scales(self.scale(stored), scale_name(weight_name))

    @abstractmethod
    def scale(self, stored: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The scales (value = trit * scale) for stored ones."""


def scale_name(weight_name: str) -> str:
    """The name of the scale of a packed weight."""
    return weight_name.removesuffix(".weight") + ".weight_scale"


def packed_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """The shape of the packed bytes of a weight ``[out, in]``.

    Raises:
        UnsupportedError: ``out`` is not a multiple of four, which transformers cannot load either.
    """
    out, columns = shape
    if out % 4:
        raise UnsupportedError(
            f"a weight of {out} rows cannot be packed four to a byte; expected a multiple of 4: use master "
            "weights"
        )
    return out // 4, columns


def is_unpacked(checkpoint: Checkpoint, weight_name: str) -> bool:
    """Whether the trits of a weight were unpacked by the tool that saved it again, which its dtype shows."""
    return checkpoint.info(weight_name).dtype in TRIT_DTYPES


def check_packed(checkpoint: Checkpoint, weight_name: str) -> None:
    """Check that a weight is packed, or trits, and that its scale is a float for each group of its weights.

    Raises:
        CheckpointError: a tensor is missing or has another dtype or shape.
        UnsupportedError: the scales belong to groups of a size that no GGUF type has.
    """
    info = checkpoint.info(weight_name)
    if scale_name(weight_name) not in checkpoint.tensors and info.dtype in FLOAT_DTYPES:
        raise _not_packed(checkpoint, weight_name)
    if info.dtype not in ("U8", *TRIT_DTYPES):
        raise CheckpointError(
            f"tensor '{weight_name}' has dtype {info.dtype}, but quantization_config says packed (offline); "
            f"expected packed weights in U8, or -1, 0 and 1 in {', '.join(TRIT_DTYPES)}: save it as one of "
            "them"
        )
    scale = checkpoint.info(scale_name(weight_name))
    if scale.dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            f"tensor '{scale.name}' has dtype {scale.dtype}; expected {', '.join(FLOAT_DTYPES)}: save it as "
            "F32"
        )
    if len(info.shape) != 2:
        return  # the plan reports the shape
    rows = info.shape[0] if is_unpacked(checkpoint, weight_name) else 4 * info.shape[0]
    if per_row(scale.shape, rows, info.shape[1]) is None:
        raise CheckpointError(
            f"tensor '{scale.name}' has shape {list(scale.shape)}, and its weight is {rows} x "
            f"{info.shape[1]}; expected one scale, [{rows}] or [{rows}, 1] for one per row, or [{rows}, n] "
            "for n groups of columns per row: save it in one of these shapes"
        )


def _not_packed(checkpoint: Checkpoint, weight_name: str) -> CheckpointError:
    """The error to raise for a float weight without a scale. What to do depends on the other weights."""
    dtype = checkpoint.info(weight_name).dtype
    what = f"tensor '{weight_name}' is {dtype} and has no weight_scale, but quantization_config says packed"
    if any(name.endswith(".weight_scale") for name in checkpoint.tensors):
        module = weight_name.removesuffix(".weight")
        return CheckpointError(
            f"{what}, as other tensors are; expected U8: if the layer is meant to stay float, add "
            f'"{module}" to modules_to_not_convert in quantization_config'
        )
    return CheckpointError(
        f"{what} (offline); expected U8: for master weights, which the model quantizes, convert with "
        "--master, or set linear_class to autobitlinear and quantization_mode to online; for weights that "
        "are ternary already, remove quantization_config"
    )


def read_scales(checkpoint: Checkpoint, weight_name: str) -> npt.NDArray[np.float32]:
    """The stored ``weight_scale`` of a weight, ``[out, n]``, or ``[1, 1]`` if there is one.

    Raises:
        CheckpointError: it is missing, or a scale is NaN or infinite.
    """
    stored = checkpoint.read(scale_name(weight_name))
    return stored.reshape(len(stored) if stored.ndim else 1, -1)


def saved_trits(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.int8]:
    """Trits ``[out, in]`` that were saved as numbers.

    Raises:
        CheckpointError: a value is not -1, 0 or 1.
    """
    trits = values.astype(np.int8) if values.dtype != np.int8 else values
    wrong = (trits != values) | (np.abs(trits) > 1)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise CheckpointError(
            f"tensor '{name}' has a weight_scale, so it should be trits, but row {row}, column {column} "
            f"holds {values[row, column]:g}; expected -1, 0 or 1: if its values are already multiplied by "
            "the scales, remove the weight_scale tensors and quantization_config; otherwise convert the "
            "original checkpoint"
        )
    return trits


def unpack_trits(packed: npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.int8]:
    """Packed uint8 ``[out / 4, in]`` to int8 trits ``[out, in]``.

    Raises:
        CheckpointError: a two-bit value is 3, which is not a trit.
    """
    if np.any(packed & (packed >> np.uint8(1)) & np.uint8(0x55)):
        row, column = np.argwhere(packed & (packed >> np.uint8(1)) & np.uint8(0x55))[0]
        raise CheckpointError(
            f"tensor '{name}' holds a two-bit value of 3 (byte {row}, {column}: "
            f"0x{packed[row, column]:02x}); expected 0, 1 or 2: the file is damaged or packed differently"
        )
    quarter, columns = packed.shape
    trits = np.empty((4, quarter, columns), dtype=np.int8)
    for k in range(4):
        plane = trits[k].view(np.uint8)
        np.right_shift(packed, np.uint8(2 * k), out=plane)
        np.bitwise_and(plane, np.uint8(3), out=plane)
    trits -= np.int8(1)
    return trits.reshape(4 * quarter, columns)
