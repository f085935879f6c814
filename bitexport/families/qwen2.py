"""Qwen2 and Qwen2.5 as distilled students: SiLU, biases on q, k and v, SubLN."""

from __future__ import annotations

from bitexport.families.parts import Part
from bitexport.families.rules import decoder_rules
from bitexport.families.ternary_decoder import TernaryDecoder

QWEN2 = TernaryDecoder(
    name="Qwen2 student",
    summary="Qwen2 or Qwen2.5, with or without SubLN; biases on q, k, v",
    architectures=("Qwen2ForCausalLM", "Qwen2SubLNForCausalLM"),
    model_class="Qwen2ForCausalLM",
    activations=("silu", "relu2"),
    default_theta=10000.0,
    default_eps=1e-6,
    rules=decoder_rules(),
    required_parts=frozenset({Part.QKV_BIASES}),
    optional_parts=frozenset({Part.SUB_NORMS, Part.INPUT_NORMS}),
)
