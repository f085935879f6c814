"""Float weights that are already ternary, in a model that transformers loaded with its quantized layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bitexport.checkpoint import Checkpoint
from bitexport.checkpoint.packings import Packing, packing_of, quantization_config
from bitexport.errors import CheckpointError, UnsupportedError
from bitexport.reference.delivered import trained_grid
from bitexport.reference.ternary_layers import TernaryLinear
from bitexport.ternary import AnyTernary, TernaryTensor


def keep_ternary_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Turn off the quantization of float weights that are already ternary, as the conversion does.

    Without a quantization_config, activations were not quantized in training either, and a layer that is not
    ternary while others are is an ordinary linear layer.
    """
    from transformers.integrations.bitnet import AutoBitLinear

    online: dict[str, Any] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, AutoBitLinear) and module.online_quant
    }
    packing, grid = packing_of(checkpoint), trained_grid(checkpoint)
    configured = quantization_config(checkpoint.config) is not None
    kept = 0
    for name, module in online.items():
        found = already_ternary(checkpoint, packing, f"{name}.weight")
        if found is None:
            continue
        kept += 1
        if configured and isinstance(found, TernaryTensor):
            module.online_quant = False
            module.weight_scale = nn.Buffer(torch.ones(1))
            continue
        bias = None if module.bias is None else module.bias.data
        replacement = TernaryLinear(torch.from_numpy(found.dequantize()), bias, grid)
        replacement.rms_norm = module.rms_norm
        model.set_submodule(name, replacement)
    if configured or not kept:
        return
    for name, module in online.items():
        if model.get_submodule(name) is module:
            model.set_submodule(name, _plain(module))


def already_ternary(checkpoint: Checkpoint, packing: Packing, name: str) -> AnyTernary | None:
    """A float weight that is ternary without being quantized, with one scale or several; otherwise None."""
    try:
        if packing.scales(checkpoint, name).low is None:
            return None  # ordinary weights, which the packing has not read completely to find out
        found = packing.unpack(checkpoint, name)
    except (CheckpointError, UnsupportedError):
        return None
    return None if isinstance(found, TernaryTensor) and not found.dequantized else found


def _plain(module: Any) -> nn.Linear:
    """The same layer without quantization."""
    plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
    plain.load_state_dict(module.state_dict())
    return plain
