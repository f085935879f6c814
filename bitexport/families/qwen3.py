"""Qwen3 as a distilled student: SiLU, norms on queries and keys before RoPE, SubLN.

Microsoft's bitnet-embeddings-0.6b is one without a head: Qwen3Model, a norm in front of each linear layer.

Its head_dim does not follow from hidden_size; it is 128 if config.json has none.
"""

from __future__ import annotations

from bitexport.families.parts import Part
from bitexport.families.rules import decoder_rules
from bitexport.families.ternary_decoder import TernaryDecoder

QWEN3 = TernaryDecoder(
    name="Qwen3 student",
    summary="Qwen3 and its embedding models, with or without SubLN; QK-norm before RoPE, own head_dim",
    architectures=("Qwen3ForCausalLM", "Qwen3SubLNForCausalLM", "Qwen3Model"),
    model_class="Qwen3ForCausalLM",
    activations=("silu", "relu2"),
    default_theta=10000.0,
    default_eps=1e-6,
    default_head_dim=128,
    rules=decoder_rules(),
    required_parts=frozenset({Part.QK_NORMS}),
    optional_parts=frozenset({Part.SUB_NORMS, Part.INPUT_NORMS, Part.QKV_BIASES, Part.OUTPUT_BIAS}),
)
