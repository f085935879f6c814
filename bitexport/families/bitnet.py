"""BitNet b1.58 (2B4T): ReLU squared, and a norm in front of the output layers of attention and MLP (SubLN).

With ``hidden_act`` silu it is a Llama with SubLN, and some distilled Llamas are saved as this architecture.
"""

from __future__ import annotations

from bitexport.families.parts import Part
from bitexport.families.rules import decoder_rules
from bitexport.families.ternary_decoder import TernaryDecoder

BITNET = TernaryDecoder(
    name="BitNet b1.58",
    summary="SubLN; ReLU squared or SiLU",
    architectures=("BitNetForCausalLM",),
    model_class="BitNetForCausalLM",
    activations=("relu2", "silu"),
    default_theta=500000.0,
    default_eps=1e-5,
    rules=decoder_rules(),
    required_parts=frozenset({Part.SUB_NORMS}),
    optional_parts=frozenset({Part.INPUT_NORMS, Part.QKV_BIASES, Part.OUTPUT_BIAS}),
)
