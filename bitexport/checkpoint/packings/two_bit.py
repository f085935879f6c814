"""The bytes of transformers' packed ternary weights, shared by both packed packings.

A weight ``[out, in]`` is stored as uint8 ``[out / 4, in]``. Bits 2k+1 and 2k of byte (r, c) are the trit plus
one of row ``k * (out / 4) + r``, column c. The two packings differ only in the meaning of ``weight_scale``,
which the subclasses of :class:`TwoBit` in packed_multiply.py and packed_divide.py add.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

from bitexport.checkpoint.packings.base import checked_scale
from bitexport.checkpoint.reader import FLOAT_DTYPES, Checkpoint
from bitexport.errors import CheckpointError, UnsupportedError
from bitexport.ternary import TernaryTensor


class TwoBit(ABC):
    """A :class:`Packing` except for its name, its descriptions and the meaning of the scale."""

    def partners(self, weight_name: str) -> tuple[str, ...]:
        """The weight's ``weight_scale``."""
        return (scale_name(weight_name),)

    def stored_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """``[out / 4, in]``."""
        return packed_shape(shape)

    def check(self, checkpoint: Checkpoint, weight_name: str) -> None:
        """The weight must be uint8 and have one scale."""
        check_packed(checkpoint, weight_name)

    def bias_factor(self, checkpoint: Checkpoint, weight_name: str) -> np.float32:  # noqa: ARG002
        """1: the bias is added unchanged."""
        return np.float32(1)

    def unpack(self, checkpoint: Checkpoint, weight_name: str) -> TernaryTensor:
        """Read one weight."""
        trits = unpack_trits(checkpoint.read(weight_name), weight_name)
        scale = self.scale(read_scale(checkpoint, weight_name))
        return TernaryTensor(trits, checked_scale(scale, scale_name(weight_name)))

    @abstractmethod
    def scale(self, stored: np.float32) -> np.float32:
        """The scale (value = trit * scale) for a stored ``weight_scale``."""


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


def check_packed(checkpoint: Checkpoint, weight_name: str) -> None:
    """Check that a packed weight is uint8 and that its scale is a single float.

    Raises:
        CheckpointError: a tensor is missing or has another dtype.
        UnsupportedError: there is more than one scale.
    """
    dtype = checkpoint.info(weight_name).dtype
    if dtype != "U8" and scale_name(weight_name) in checkpoint.tensors:
        raise CheckpointError(
            f"tensor '{weight_name}' has dtype {dtype}, but has a weight_scale as packed weights do; "
            "expected U8: the tool that saved it again has unpacked it, so convert the original checkpoint"
        )
    if dtype != "U8":
        raise CheckpointError(
            f"tensor '{weight_name}' has dtype {dtype}, but quantization_config says packed (offline); "
            "expected U8: for master weights, which the model quantizes, convert with --master"
        )
    scale = checkpoint.info(scale_name(weight_name))
    if scale.dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            f"tensor '{scale.name}' has dtype {scale.dtype}; expected {', '.join(FLOAT_DTYPES)}: save it as "
            "F32"
        )
    if scale.shape not in ((), (1,), (1, 1)):
        raise UnsupportedError(
            f"tensor '{scale.name}' has shape {list(scale.shape)}; expected one scale per tensor: bitexport "
            "does not convert packed weights with a scale per row or group; save the model with one scale "
            "per tensor"
        )


def read_scale(checkpoint: Checkpoint, weight_name: str) -> np.float32:
    """The stored ``weight_scale`` of a packed weight.

    Raises:
        CheckpointError: it is missing, zero, negative, NaN or infinite.
    """
    name = scale_name(weight_name)
    return checked_scale(checkpoint.read(name).reshape(-1)[0], name)


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
