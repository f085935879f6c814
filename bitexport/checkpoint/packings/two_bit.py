"""The bytes of transformers' packed ternary weights, which both packed packings share.

A weight ``[out, in]`` is stored as uint8 ``[out / 4, in]``. Bits 2k+1 and 2k of byte (r, c) are the trit plus
one of row ``k * (out / 4) + r``, column c. Only what ``weight_scale`` means differs: see packed_multiply.py
and packed_divide.py, whose classes add that to :class:`TwoBit`.
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
    """What both packed packings are: all of a :class:`Packing` but its name and what the scale means."""

    def partners(self, weight_name: str) -> tuple[str, ...]:
        """The weight's ``weight_scale``."""
        return (scale_name(weight_name),)

    def stored_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """``[out / 4, in]``."""
        return packed_shape(shape)

    def check(self, checkpoint: Checkpoint, weight_name: str) -> None:
        """uint8 bytes and one scale."""
        check_packed(checkpoint, weight_name)

    def bias_factor(self, checkpoint: Checkpoint, weight_name: str) -> np.float32:  # noqa: ARG002
        """A bias is added as it is."""
        return np.float32(1)

    def unpack(self, checkpoint: Checkpoint, weight_name: str) -> TernaryTensor:
        """Read one weight."""
        trits = unpack_trits(checkpoint.read(weight_name), weight_name)
        scale = self.scale(read_scale(checkpoint, weight_name))
        return TernaryTensor(trits, checked_scale(scale, scale_name(weight_name)))

    @abstractmethod
    def scale(self, stored: np.float32) -> np.float32:
        """What a trit is worth, from the stored ``weight_scale``."""


def scale_name(weight_name: str) -> str:
    """The name of the scale that belongs to a packed weight."""
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
    """Check that a packed weight is uint8 and that its scale is there, one float.

    Raises:
        CheckpointError: it is not.
    """
    dtype = checkpoint.info(weight_name).dtype
    if dtype != "U8":
        raise CheckpointError(
            f"tensor '{weight_name}' has dtype {dtype}, but quantization_config says packed (offline): "
            "expected U8; "
            "master weights have linear_class autobitlinear and quantization_mode online"
        )
    scale = checkpoint.info(scale_name(weight_name))
    if scale.dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            f"tensor '{scale.name}' has dtype {scale.dtype}; expected {', '.join(FLOAT_DTYPES)}: save it as "
            "F32"
        )
    if scale.shape not in ((), (1,), (1, 1)):
        raise UnsupportedError(
            f"tensor '{scale.name}' has shape {list(scale.shape)}; expected one scale a tensor: "
            "a ternary tensor has one here, as I2_S does. TQ1_0 and TQ2_0 hold one for each 256 weights of a "
            "row, Q2_0 one for each 64: write one of those with llama.cpp's convert_hf_to_gguf.py"
        )


def read_scale(checkpoint: Checkpoint, weight_name: str) -> np.float32:
    """The stored ``weight_scale`` of a packed weight.

    Raises:
        CheckpointError: missing, zero, negative, NaN or infinite.
    """
    name = scale_name(weight_name)
    return checked_scale(checkpoint.read(name).reshape(-1)[0], name)


def unpack_trits(packed: npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.int8]:
    """Packed uint8 ``[out / 4, in]`` to int8 trits ``[out, in]``.

    Raises:
        CheckpointError: a two-bit value of 3, which no trit has.
    """
    if np.any(packed & (packed >> np.uint8(1)) & np.uint8(0x55)):
        row, column = np.argwhere(packed & (packed >> np.uint8(1)) & np.uint8(0x55))[0]
        raise CheckpointError(
            f"tensor '{name}' holds a two-bit value of 3 (byte {row}, {column}: "
            f"0x{packed[row, column]:02x}); "
            "expected 0, 1 or 2: the file is damaged or packed in another way"
        )
    quarter, columns = packed.shape
    trits = np.empty((4, quarter, columns), dtype=np.int8)
    for k in range(4):
        plane = trits[k].view(np.uint8)
        np.right_shift(packed, np.uint8(2 * k), out=plane)
        np.bitwise_and(plane, np.uint8(3), out=plane)
    trits -= np.int8(1)
    return trits.reshape(4 * quarter, columns)
