"""A model from scratch."""

from __future__ import annotations

import torch
from transformers import BitNetConfig, BitNetForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from bitexport.reference.norms import connect_norms
from bitexport.train.config import TrainConfig
from bitexport.train.student.surgery import replace_projections


def build_model(config: TrainConfig, end_of_text: int) -> PreTrainedModel:
    """A fresh model with float32 weights; ``end_of_text`` is the id that ends texts.

    With ``config.ternary`` its projections quantize in every forward pass. Only BitNetForCausalLM has SubLN.
    """
    bitnet = config.architecture == "bitnet"
    same_names = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
        "hidden_act max_position_embeddings rms_norm_eps tie_word_embeddings initializer_range"
    )
    model_config = (BitNetConfig if bitnet else LlamaConfig)(
        **{name: getattr(config, name) for name in same_names.split()},
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
        dtype=torch.float32,
    )
    torch.manual_seed(config.seed)
    model: PreTrainedModel = (BitNetForCausalLM if bitnet else LlamaForCausalLM)(model_config)
    if config.ternary:
        replace_projections(model)
        connect_norms(model)
    return model
