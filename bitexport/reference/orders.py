"""Finds out in which order a file has the rows of queries and keys, and the columns of some other weights."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from bitexport.gguf.dequantize import can_dequantize, dequantize
from bitexport.gguf.reader import read_gguf

_QUERIES_OR_KEYS = re.compile(r"blk\.\d+\.attn_[qk]\.weight")

#: The largest relative error of a row in the right order: float16's.
_ROUNDING = 1e-3


#: The output of linear attention, whose input is one value head after another.
_VALUE_HEADS = re.compile(r"blk\.\d+\.ssm_out\.weight")


def input_orders(
    modules: Mapping[str, nn.Module], path: str | os.PathLike[str], config: Any
) -> dict[str, npt.NDArray[np.intp]]:
    """For GGUF weights whose columns the file has in another order: ``file[:, i] = checkpoint[:, order[i]]``.

    llama.cpp's converters put the value heads of linear attention in another order for some architectures.
    Arguments as for :func:`row_orders`.
    """
    keys, values = (getattr(config, f"linear_num_{kind}_heads", None) for kind in ("key", "value"))
    if not keys or not values:
        return {}
    found = {}
    for name, weight, stored in _weights(modules, path, _VALUE_HEADS):
        order = np.arange(weight.shape[1]).reshape(keys, values // keys, -1).swapaxes(0, 1).reshape(-1)
        if not _same(stored, weight) and _same(stored, weight[:, order]):
            found[name] = order
    return found


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
    found = {}
    for name, weight, stored in _weights(modules, path, _QUERIES_OR_KEYS):
        heads = int(config.num_attention_heads)
        if ".attn_k." in name:
            heads = int(getattr(config, "num_key_value_heads", None) or heads)
        order = np.arange(len(weight)).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
        if not _same(stored, weight) and _same(stored, weight[order]):
            found[name] = order
    return found


def _weights(
    modules: Mapping[str, nn.Module], path: str | os.PathLike[str], names: re.Pattern[str]
) -> Iterator[tuple[str, npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """The name of each linear layer's weight, its values in the model, and those in the file."""
    file = read_gguf(os.fspath(path))
    for tensor in file.tensors:
        module = modules.get(tensor.name) if names.fullmatch(tensor.name) else None
        if not isinstance(module, nn.Linear) or not can_dequantize(tensor.type):
            continue
        weight, stored = module.weight.detach().numpy(), dequantize(file, tensor)
        if stored.shape == weight.shape:
            yield tensor.name, weight, stored


def _same(stored: npt.NDArray[np.float32], weight: npt.NDArray[np.float32]) -> bool:
    return bool(np.linalg.norm(stored - weight) <= _ROUNDING * np.linalg.norm(weight))
