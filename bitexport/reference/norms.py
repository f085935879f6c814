"""Norms of ternary checkpoints that transformers' classes lack, or have where hooks cannot observe them.

SubLN is a norm before o_proj and one before down_proj. BitNetForCausalLM has them; any other decoder gets
them here, under the same names: ``self_attn.attn_sub_norm`` and ``mlp.ffn_sub_norm``. Everything else,
including the quantized layers, is transformers' own.

To make a student: ``with_sub_norms(Qwen3ForCausalLM)(config)``, then quantize its linear layers with
transformers' ``replace_with_bitnet_linear``, then :func:`connect_norms`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def with_sub_norms(model_class: type[Any]) -> type[Any]:
    """A subclass of ``model_class``, a transformers decoder, with SubLN in every layer.

    The norms can be loaded; they act once :func:`connect_norms` has been called.
    """

    def initialize(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, config, *args, **kwargs)
        add_sub_norms(self)

    return type(model_class.__name__, (model_class,), {"__init__": initialize})


def without_sub_norms(model_class: type[Any]) -> type[Any]:
    """A subclass of ``model_class``, transformers' BitNet, with nothing in place of SubLN."""

    def initialize(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, config, *args, **kwargs)
        for layer in self.model.layers:
            layer.self_attn.attn_sub_norm = nn.Identity()
            layer.mlp.ffn_sub_norm = nn.Identity()

    return type(model_class.__name__, (model_class,), {"__init__": initialize})


def add_sub_norms(model: Any) -> None:
    """Add the two norms to every layer of a transformers decoder: all ones, not connected yet."""
    for layer in model.model.layers:
        kind = type(layer.input_layernorm)  # all of these families have RMSNorm, each its own class
        eps = model.config.rms_norm_eps
        layer.self_attn.attn_sub_norm = kind(layer.self_attn.o_proj.in_features, eps=eps)
        layer.mlp.ffn_sub_norm = kind(layer.mlp.down_proj.in_features, eps=eps)
    model.sub_norms_added = True


def connect_norms(model: Any) -> None:
    """Apply each norm to the input of its linear layer, before every hook that is registered later.

    This covers SubLN, where :func:`with_sub_norms` added it, and the ``rms_norm`` that transformers'
    ``use_rms_norm`` puts inside the quantized layers, which is moved before them as ``norm_in``. A later
    forward pre-hook then sees the values that are quantized. Call it once, after layers are replaced and
    weights loaded.
    """
    if getattr(model, "sub_norms_added", False):
        for layer in model.model.layers:
            _norm_first(layer.self_attn.o_proj, layer.self_attn.attn_sub_norm)
            _norm_first(layer.mlp.down_proj, layer.mlp.ffn_sub_norm)
    for module in list(model.modules()):
        if (norm_in := getattr(module, "rms_norm", None)) is not None:
            module.rms_norm = None
            module.norm_in = norm_in
            _norm_first(module, norm_in)


def mark_heads_first(model: Any) -> None:
    """Mark norms on queries and keys whose values are ``[1, heads, T, head_dim]``: after RoPE, or in Gemma.

    Everywhere else in a model, T is the second dimension; :mod:`bitexport.reference.visit` needs to know.
    """
    for layer in model.model.layers:
        for name in ("query_layernorm", "key_layernorm", "q_norm", "k_norm"):
            if (norm := getattr(layer.self_attn, name, None)) is not None:
                norm.heads_first = True


def _norm_first(linear: nn.Module, norm: nn.Module) -> None:
    def before(_module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (norm(inputs[0]),)

    linear.register_forward_pre_hook(before)
