"""MiniCPM, which transformers lacks: Llama with three constant factors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import LlamaForCausalLM


class MiniCPMForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
    """MiniCPM and BitCPM4 as Llama whose embeddings, residual branches and head inputs are scaled.

    Embeddings are multiplied by ``scale_emb``, what each attention and each MLP adds by ``scale_depth`` over
    the root of the number of layers, and the head's input by ``dim_model_base / hidden_size``.
    Source: the MiniCPM paper's table of "tensor program" operations, and the keys of openbmb's config.json.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        branch = getattr(config, "scale_depth", 1) / math.sqrt(config.num_hidden_layers)
        head = getattr(config, "dim_model_base", config.hidden_size) / config.hidden_size
        _scale_output(self.model.embed_tokens, getattr(config, "scale_emb", 1))
        for layer in self.model.layers:
            _scale_output(layer.self_attn, branch)
            _scale_output(layer.mlp, branch)
        self.lm_head.register_forward_pre_hook(lambda _module, inputs: (inputs[0] * head,))


def _scale_output(module: nn.Module, factor: float) -> None:
    def scale(_module: nn.Module, _inputs: object, output: Any) -> Any:
        if isinstance(output, torch.Tensor):
            return output * factor
        return (output[0] * factor, *output[1:])

    module.register_forward_hook(scale)
