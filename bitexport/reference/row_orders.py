"""Finds out in which order a file has the rows of queries and keys."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from bitexport.gguf.dequantize import can_dequantize, dequantize
from bitexport.gguf.reader import read_gguf
from bitexport.reference.ternary_layers import TernaryLinear

_QUERIES_OR_KEYS = re.compile(r"blk\.\d+\.attn_(q|k)\.weight")

#: The largest relative error of a row in the right order: float16's.
_ROUNDING = 1e-3


def row_orders(
    modules: Mapping[str, nn.Module], path: str | os.PathLike[str], config: Any
) -> dict[str, npt.NDArray[np.intp]]:
    """For GGUF weights whose rows the file has in another order: ``file[i] = checkpoint[order[i]]``.

    llama.cpp's converters pair the halves of each head for some architectures, because their graphs rotate
    neighbours. Weights that are in neither order are left out; their products will differ.

    Args:
        modules: by the GGUF name of their weight.
        path: the file.
        config: the model's configuration.
    """
    file = read_gguf(os.fspath(path))
    tensors = {tensor.name: tensor for tensor in file.tensors}
    found = {}
    for name, module in modules.items():
        match = _QUERIES_OR_KEYS.fullmatch(name)
        if match is None or name not in tensors or not can_dequantize(tensors[name].type):
            continue
        if not isinstance(module, (nn.Linear, TernaryLinear)):
            continue
        weight = module.weight.detach().numpy()
        heads = int(config.num_attention_heads)
        if match[1] == "k":
            heads = int(getattr(config, "num_key_value_heads", None) or heads)
        order = np.arange(len(weight)).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
        stored = dequantize(file, tensors[name])
        if stored.shape == weight.shape and not _same(stored, weight) and _same(stored, weight[order]):
            found[name] = order
    return found


def _same(stored: npt.NDArray[np.float32], weight: npt.NDArray[np.float32]) -> bool:
    return bool(np.linalg.norm(stored - weight) <= _ROUNDING * np.linalg.norm(weight))
