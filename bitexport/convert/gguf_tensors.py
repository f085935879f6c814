"""Reads the ternary tensors of a GGUF file: their scales for the plan, trits and scales for encoding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from bitexport.checkpoint.packings import Scales
from bitexport.checkpoint.packings.scale_groups import FIRST_ELEMENTS, find_scale_groups
from bitexport.errors import BitexportError
from bitexport.gguf.dequantize import unpack_foreign
from bitexport.gguf.packers import FOREIGN_UNPACKERS, PACKERS, f16
from bitexport.gguf.packers.block_scale import stored_scales
from bitexport.gguf.reader import GGUFFile, GGUFTensor
from bitexport.gguf.types import I2_S
from bitexport.ternary import AnyTernary, TernaryTensor, merge_equal_scales

FLOAT_TYPES = ("f32", "f16", "bf16")


def read_scales(file: GGUFFile, tensor: GGUFTensor) -> Scales:
    """What a ternary tensor's type depends on; most faults are found only when it is unpacked."""
    columns = tensor.shape[-1]
    rows = math.prod(tensor.shape[:-1])
    data = file.data(tensor)
    if tensor.type is I2_S:
        scale = float(data[-I2_S.tail_bytes :].view("<f4")[0])
        return Scales(None, scale, scale)
    if tensor.type.name in FLOAT_TYPES:
        chunks = data.reshape(rows, -1)
        step = max(1, FIRST_ELEMENTS // max(columns, 1))
        found = find_scale_groups(
            f16.float_values(chunks[start : start + step], tensor.type) for start in range(0, rows, step)
        )
        return Scales(found.group, found.low, found.high, found.share) if found else Scales()
    if tensor.type.name in FOREIGN_UNPACKERS:
        # a foreign type may store its scales anywhere, so that only its unpacker finds them
        with named(file, tensor):
            weights = unpack_foreign(file, tensor)
        if isinstance(weights, TernaryTensor):
            return Scales(None, float(weights.scale), float(weights.scale))
        scales = weights.scales
    else:
        scales = stored_scales(data, tensor.type).reshape(rows, -1)
    merged = merge_equal_scales(scales, columns)
    used = scales[scales > 0]
    low, high = (float(used.min()), float(used.max())) if used.size else (None, None)
    return Scales(None if merged.size == 1 else columns // merged.shape[1], low, high)


@contextmanager
def named(file: GGUFFile, tensor: GGUFTensor) -> Iterator[None]:
    """Put the file and the tensor in front of the message of an error in the block."""
    try:
        yield
    except BitexportError as error:
        raise type(error)(f"{file.path.name}: tensor '{tensor.name}': {error}") from error


def unpack(file: GGUFFile, tensor: GGUFTensor) -> AnyTernary:
    """A ternary tensor's trits and scales; experts are stacked into one matrix."""
    kind = tensor.type
    if kind.name in FOREIGN_UNPACKERS:
        return unpack_foreign(file, tensor)
    packer = partial(f16.unpack, kind=kind) if kind.name in FLOAT_TYPES else PACKERS[kind.name].unpack
    return packer(file.data(tensor), (math.prod(tensor.shape[:-1]), tensor.shape[-1]))
