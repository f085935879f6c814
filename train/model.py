"""The model: transformers' BitNetForCausalLM, whose AutoBitLinear layers quantize in every forward pass."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BitNetConfig, BitNetForCausalLM
from transformers.integrations.bitnet import replace_with_bitnet_linear
from transformers.utils.quantization_config import BitNetQuantConfig

from train.config import PretrainConfig

# The head is tied to the embeddings or reads final hidden states: it stays float, as in every BitNet model.
FLOAT_MODULES = ["lm_head"]


def quantization_config(mode: str) -> dict[str, Any]:
    """For config.json; ``mode`` is "online" (master weights) or "offline" (packed trits and scales)."""
    config = BitNetQuantConfig(
        modules_to_not_convert=FLOAT_MODULES, linear_class="autobitlinear", quantization_mode=mode
    )
    return dict(config.to_dict())


def build_model(config: PretrainConfig, end_of_text: int) -> BitNetForCausalLM:
    """A fresh model with float32 master weights; ``end_of_text`` is the id that begins and ends texts."""
    model_config = BitNetConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        hidden_act=config.hidden_act,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=config.tie_word_embeddings,
        initializer_range=config.initializer_range,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
        dtype=torch.float32,
    )
    torch.manual_seed(config.seed)
    model = BitNetForCausalLM(model_config)
    # The layers that replace nn.Linear come without storage: hand them the initialized weights.
    weights = model.state_dict()
    online = BitNetQuantConfig.from_dict(quantization_config("online"))
    model = replace_with_bitnet_linear(model, FLOAT_MODULES, online)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.config.quantization_config = quantization_config("online")
    return model
