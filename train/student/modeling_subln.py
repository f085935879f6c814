"""Llama, Qwen2, Qwen3 and HunYuan dense with SubLN, for transformers.

A ternary student has two more RMSNorms per layer than its base model: ``attn_sub_norm`` in front of
``o_proj`` and ``ffn_sub_norm`` in front of ``down_proj``. Everything else is the base model's. (transformers'
BitNetForCausalLM has the same two norms: a Llama student that fits this class does not need this file.)

``quantization_config`` in config.json makes transformers replace the seven projections of a layer by layers
that quantize their weights and inputs. ``auto_map`` there names the classes of this file, so this is enough::

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

Written by bitexport (MIT licence) for transformers 5.23; needs nothing but torch and transformers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    HunYuanDenseV1Config,
    HunYuanDenseV1ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.hunyuan_v1_dense.modeling_hunyuan_v1_dense import (
    HunYuanDenseV1Attention,
    HunYuanDenseV1MLP,
)
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2MLP
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3MLP


class _Attention(nn.Module):
    """A mixin for a decoder's attention: its forward pass, with ``attn_sub_norm``."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.attn_sub_norm = LlamaRMSNorm(self.o_proj.in_features, eps=config.rms_norm_eps)

    def before_rope(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The decoder's norms in front of RoPE; both ``[B, heads, T, head_dim]``."""
        return query, key

    def after_rope(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The decoder's norms behind RoPE; both ``[B, heads, T, head_dim]``."""
        return query, key

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key, value = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = self.before_rope(query, key)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        query, key = self.after_rope(query, key)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        implementation = self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        heads, probabilities = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=getattr(self, "sliding_window", None),  # Qwen's, if config.json has one
            **kwargs,
        )
        output = heads.flatten(-2)  # [B, T, heads, head_dim] to [B, T, heads * head_dim]
        return self.o_proj(self.attn_sub_norm(output)), probabilities


class _MLP(nn.Module):
    """A mixin for a decoder's MLP: its forward pass, with ``ffn_sub_norm``."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.ffn_sub_norm = LlamaRMSNorm(self.down_proj.in_features, eps=config.rms_norm_eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.ffn_sub_norm(self.act_fn(self.gate_proj(x)) * self.up_proj(x)))


class _Decoder(nn.Module):
    """A mixin for a causal language model: every layer gets the attention and the MLP with norms."""

    attention_class: type
    mlp_class: type

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for number, layer in enumerate(self.model.layers):
            layer.self_attn = self.attention_class(config, number)
            layer.mlp = self.mlp_class(config)
        self.post_init()


class LlamaSubLNConfig(LlamaConfig):
    model_type = "llama_subln"


class LlamaSubLNAttention(_Attention, LlamaAttention):
    pass


class LlamaSubLNMLP(_MLP, LlamaMLP):
    pass


class LlamaSubLNForCausalLM(_Decoder, LlamaForCausalLM):
    config_class = LlamaSubLNConfig
    attention_class = LlamaSubLNAttention
    mlp_class = LlamaSubLNMLP


class Qwen2SubLNConfig(Qwen2Config):
    model_type = "qwen2_subln"


class Qwen2SubLNAttention(_Attention, Qwen2Attention):
    pass


class Qwen2SubLNMLP(_MLP, Qwen2MLP):
    pass


class Qwen2SubLNForCausalLM(_Decoder, Qwen2ForCausalLM):
    config_class = Qwen2SubLNConfig
    attention_class = Qwen2SubLNAttention
    mlp_class = Qwen2SubLNMLP


class Qwen3SubLNConfig(Qwen3Config):
    model_type = "qwen3_subln"


class Qwen3SubLNAttention(_Attention, Qwen3Attention):
    def before_rope(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.q_norm(query), self.k_norm(key)


class Qwen3SubLNMLP(_MLP, Qwen3MLP):
    pass


class Qwen3SubLNForCausalLM(_Decoder, Qwen3ForCausalLM):
    config_class = Qwen3SubLNConfig
    attention_class = Qwen3SubLNAttention
    mlp_class = Qwen3SubLNMLP


class HunYuanDenseV1SubLNConfig(HunYuanDenseV1Config):
    model_type = "hunyuan_v1_dense_subln"


class HunYuanDenseV1SubLNAttention(_Attention, HunYuanDenseV1Attention):
    def after_rope(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.query_layernorm(query), self.key_layernorm(key)


class HunYuanDenseV1SubLNMLP(_MLP, HunYuanDenseV1MLP):
    pass


class HunYuanDenseV1SubLNForCausalLM(_Decoder, HunYuanDenseV1ForCausalLM):
    config_class = HunYuanDenseV1SubLNConfig
    attention_class = HunYuanDenseV1SubLNAttention
    mlp_class = HunYuanDenseV1SubLNMLP
