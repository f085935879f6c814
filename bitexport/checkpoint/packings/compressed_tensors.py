"""Packed weights of compressed-tensors (vLLM's format), ``pack-quantized`` with 2 bits.

``weight_packed`` is int32 ``[out, in / 16]``: column ``16 i + k`` is in bits 2k+1..2k of word i, as the value
plus 2. ``weight_scale`` is ``[out, in / g]``, ``[out, 1]`` or ``[1]`` and multiplies; ``weight_shape`` holds
``[out, in]``. The format has four values; a weight is ternary if -2, which is code 0, does not occur. Layout:
``compressed_tensors.compressors`` (the package's ``pack_to_int32``) and llama.cpp's ``conversion/base.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bitexport.checkpoint.packings.base import Scales
from bitexport.checkpoint.packings.stored_scales import checked_scales, per_row, scales_of
from bitexport.checkpoint.packings.words import PER_WORD, InWords, codes_of_words
from bitexport.checkpoint.reader import FLOAT_DTYPES, Checkpoint
from bitexport.errors import CheckpointError, UnsupportedError
from bitexport.ternary import AnyTernary, grouped

#: A stored code is the value plus this.
OFFSET = 2


class CompressedTensors(InWords):
    """Two bits per weight in int32 words, with a scale for each group, row or tensor."""

    name = "compressed-tensors"
    recognised_by = "int32 `weight_packed` [out, in / 16]; quant_method compressed-tensors, 2 bits, symmetric"
    meaning = "trit * weight_scale"

    def stored_name(self, weight_name: str) -> str:
        """``weight_packed``."""
        return f"{weight_name}_packed"

    def partners(self, weight_name: str) -> tuple[str, ...]:
        """``weight_scale`` and ``weight_shape``."""
        return (f"{weight_name}_scale", f"{weight_name}_shape")

    def holds(self, checkpoint: Checkpoint, weight_name: str) -> bool:
        """Whether there is a ``weight_packed``."""
        return self.stored_name(weight_name) in checkpoint.tensors

    def check(self, checkpoint: Checkpoint, weight_name: str) -> None:
        """The weight must be int32 words of 2 bits with float scales and without zero points."""
        check_config(checkpoint.config.get("quantization_config"))
        info = checkpoint.info(self.stored_name(weight_name))
        scale = checkpoint.info(f"{weight_name}_scale")
        if info.dtype != "I32" or scale.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"tensor '{info.name}' has dtype {info.dtype} and its scale {scale.dtype}; expected I32 and "
                "a float type: save the model again with compressed-tensors"
            )
        for extra in ("zero_point", "g_idx"):
            if f"{weight_name}_{extra}" in checkpoint.tensors:
                raise UnsupportedError(
                    f"tensor '{weight_name}_{extra}' makes the weights asymmetric or reorders their columns; "
                    "expected symmetric weights without activation ordering: convert the model elsewhere"
                )
        columns = self._columns(checkpoint, weight_name)
        if per_row(scale.shape, info.shape[0], columns) is None:
            raise CheckpointError(
                f"tensor '{scale.name}' has shape {list(scale.shape)} for a weight of {info.shape[0]} x "
                f"{columns}; expected one scale per tensor, row or group of columns: save the model again"
            )

    def scales(self, checkpoint: Checkpoint, weight_name: str) -> Scales:
        """The groups of one weight; only its scales are read."""
        return scales_of(self._scales(checkpoint, weight_name), self._columns(checkpoint, weight_name))

    def unpack(self, checkpoint: Checkpoint, weight_name: str) -> AnyTernary:
        """Read one weight."""
        name = self.stored_name(weight_name)
        codes = codes_of_words(checkpoint.read(name), self._columns(checkpoint, weight_name))
        if not codes.all():
            row, column = np.argwhere(codes == 0)[0]
            raise UnsupportedError(
                f"tensor '{name}' holds -2 in row {row}, column {column}, so it is a 2-bit weight and not "
                "ternary; expected -1, 0 and 1: convert the model elsewhere"
            )
        trits = codes.view(np.int8)
        trits -= np.int8(OFFSET)
        return grouped(trits, self._scales(checkpoint, weight_name))

    def _scales(self, checkpoint: Checkpoint, weight_name: str) -> npt.NDArray[np.float32]:
        stored = checkpoint.read(f"{weight_name}_scale")
        return checked_scales(stored.reshape(len(stored) if stored.ndim else 1, -1), f"{weight_name}_scale")

    def _columns(self, checkpoint: Checkpoint, weight_name: str) -> int:
        name = f"{weight_name}_shape"
        shape = checkpoint.read(name).reshape(-1)
        words = checkpoint.info(self.stored_name(weight_name)).shape
        if len(words) != 2 or len(shape) != 2 or -(-int(shape[1]) // PER_WORD) != words[1] or shape[1] < 1:
            raise CheckpointError(
                f"tensor '{name}' holds {shape.tolist()}, but weight_packed has shape {list(words)}; "
                "expected [out, in] with in at most 16 times as many columns: save the model again"
            )
        return int(shape[1])


def check_config(config: Mapping[str, Any] | Any) -> None:
    """Check that a compressed-tensors configuration describes symmetric weights of 2 bits.

    Raises:
        UnsupportedError: it does not.
    """
    groups = config.get("config_groups") if isinstance(config, Mapping) else None
    kind = config.get("format") if isinstance(config, Mapping) else None
    for group in groups.values() if isinstance(groups, Mapping) else [None]:
        weights = group.get("weights") if isinstance(group, Mapping) else None
        found = weights if isinstance(weights, Mapping) else {}
        bits, symmetric = found.get("num_bits"), found.get("symmetric", True)
        if kind != "pack-quantized" or bits != 2 or found.get("type", "int") != "int" or not symmetric:
            raise UnsupportedError(
                f"quant_method compressed-tensors with format {kind!r}, {bits} bits, symmetric {symmetric} "
                "is not ternary; expected pack-quantized with 2 bits, int, symmetric: convert that model "
                "elsewhere"
            )
