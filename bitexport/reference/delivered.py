"""A checkpoint's tensors as float32, the ternary ones unpacked by our packings, for any class."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from bitexport.checkpoint import Checkpoint
from bitexport.checkpoint.matrices import matrices
from bitexport.checkpoint.packings import Packing, keeps_float, packing_of, quantization_config
from bitexport.errors import CheckpointError, UnsupportedError
from bitexport.reference.grids import Grid

#: Matrices in a block that are not linear layers, or that llama.cpp keeps as float32.
_NOT_LINEAR = re.compile(
    r"norm|conv1d|\.A_log$|rotary|layernorm|\.(mlp|block_sparse_moe|feed_forward)\.(gate|router)\.|shared_expert_gate"
)
_IN_A_BLOCK = re.compile(r"\.\d+\.")


@dataclass
class Delivered:
    """A checkpoint's tensors.

    Attributes:
        state: float32 by the checkpoint's names.
        ternary: the names of those that are ternary.
        grid: how the inputs of ternary layers were rounded in training.
    """

    state: dict[str, torch.Tensor] = field(default_factory=dict)
    ternary: set[str] = field(default_factory=set)
    grid: Grid = Grid.TOKEN


def deliver(checkpoint: Checkpoint) -> Delivered:
    """Read all tensors of a checkpoint; a float one that could be ternary decides for itself.

    Raises:
        CheckpointError: a tensor is damaged.
        UnsupportedError: its packing is not known.
    """
    packing = packing_of(checkpoint)
    found = Delivered(grid=trained_grid(checkpoint))
    consumed: set[str] = set()
    for name in _weight_names(checkpoint, packing):
        if packing.holds(checkpoint, name):
            values = packing.unpack(checkpoint, name).dequantize()
        elif _may_be_ternary(checkpoint, name):
            values = ternary_values(checkpoint, packing, name)
        else:
            continue
        if values is not None:
            found.state[name] = torch.from_numpy(values)
            if _IN_A_BLOCK.search(name):
                found.ternary.add(name)
            consumed.update((packing.stored_name(name), *packing.partners(name)))
    for name in checkpoint.tensors:
        if name not in found.state and name not in consumed:
            found.state[name] = torch.from_numpy(np.array(checkpoint.read(name), dtype=np.float32))
    for name in found.ternary:
        bias = name.removesuffix("weight") + "bias"
        if name.endswith(".weight") and bias in found.state:
            found.state[bias] = found.state[bias] * torch.as_tensor(packing.bias_factor(checkpoint, name))
    return found


def has_ternary(checkpoint: Checkpoint) -> bool:
    """Whether the first weight that could be ternary is."""
    first = next((name for name in checkpoint.tensors if _may_be_ternary(checkpoint, name)), None)
    return first is not None and ternary_values(checkpoint, packing_of(checkpoint), first) is not None


def trained_grid(checkpoint: Checkpoint) -> Grid:
    """How the inputs of ternary layers were rounded in training: only BitNet's layers round them."""
    quantization = quantization_config(checkpoint.config)
    bitnet = quantization is not None and quantization.get("quant_method") == "bitnet"
    return Grid.TOKEN if bitnet else Grid.FLOAT


def _weight_names(checkpoint: Checkpoint, packing: Packing) -> Iterator[str]:
    """The names of the weights, under which a packing may store other tensors."""
    ending = packing.stored_name(".weight").removeprefix(".weight")
    for name in checkpoint.tensors:
        yield name.removesuffix(ending) if ending and name.endswith(f".weight{ending}") else name


def ternary_values(checkpoint: Checkpoint, packing: Packing, name: str) -> Any:
    """A weight's values as a packing reads them, a float32 array of its shape; None if it is not ternary."""
    try:
        parts = [packing.unpack(view, part).dequantize() for view, part in matrices(checkpoint, name)]
    except (CheckpointError, UnsupportedError):
        return None
    return parts[0] if len(checkpoint.info(name).shape) == 2 else np.stack(parts)


def _may_be_ternary(checkpoint: Checkpoint, name: str) -> bool:
    shape = checkpoint.info(name).shape
    matrix = len(shape) == 2 and name.endswith(".weight")
    experts = len(shape) == 3 and ".experts." in name
    inside = _IN_A_BLOCK.search(name) is not None and not _NOT_LINEAR.search(name)
    return (matrix or experts) and inside and not keeps_float(checkpoint, name)
