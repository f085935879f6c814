"""A model from scratch."""

from __future__ import annotations

import torch
from transformers import BitNetConfig, BitNetForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from bitexport.reference.norms import connect_norms
from bitexport.train.config import TrainConfig
from bitexport.train.student.surgery import replace_projections

# Keys that have the same name in our configuration and in transformers'.
_SHARED_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "initializer_range",
)


def build_model(config: TrainConfig, end_of_text: int) -> PreTrainedModel:
    """A model with random float32 weights that depend on ``config.seed`` only.

    With ``config.ternary`` its projections quantize in every forward pass. Only BitNetForCausalLM has SubLN.

    Args:
        end_of_text: the token id that begins and ends a text.
    """
    is_bitnet = config.architecture == "bitnet"
    config_class = BitNetConfig if is_bitnet else LlamaConfig
    model_class = BitNetForCausalLM if is_bitnet else LlamaForCausalLM
    model_config = config_class(
        **{key: getattr(config, key) for key in _SHARED_KEYS},
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
        dtype=torch.float32,
    )
    torch.manual_seed(config.seed)
    model: PreTrainedModel = model_class(model_config)
    if config.ternary:
        replace_projections(model)
        connect_norms(model)
    return model
