"""What a converted file holds, for tests to compare."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from bitexport.gguf.packers import PACKERS
from bitexport.gguf.reader import GGUFFile, read_gguf


def tensors_of(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    file = read_gguf(path)
    return {t.name: (t.type.name, t.shape, file.data(t).tobytes()) for t in file.tensors}


def values(file: GGUFFile, name: str) -> np.ndarray:
    """A tensor of the file as float32."""
    (tensor,) = [t for t in file.tensors if t.name == name]
    data = file.data(tensor)
    if tensor.type.name in ("i2_s", "q2_0"):  # which the gguf package lacks
        return PACKERS[tensor.type.name].unpack(data, tensor.shape).dequantize()  # type: ignore[arg-type]
    kind = gguf.GGMLQuantizationType(tensor.type.id)
    if kind is gguf.GGMLQuantizationType.F32:
        return data.view(np.float32).reshape(tensor.shape)
    return gguf.quants.dequantize(data.reshape(*tensor.shape[:-1], -1), kind)
