"""Llama and SmolLM2 as distilled students: with SubLN and other parts that the ``llama`` graph lacks.

``bitexport train`` saves most of them as BitNetForCausalLM with SiLU, see bitnet.py.
"""

from __future__ import annotations

from bitexport.families.parts import Part
from bitexport.families.rules import decoder_rules
from bitexport.families.ternary_decoder import TernaryDecoder

LLAMA_STUDENT = TernaryDecoder(
    name="Llama student",
    summary="Llama or SmolLM2 with SubLN; SiLU",
    architectures=("LlamaForCausalLM", "LlamaSubLNForCausalLM"),
    model_class="LlamaForCausalLM",
    activations=("silu", "relu2"),
    default_theta=10000.0,
    default_eps=1e-6,
    rules=decoder_rules(),
    optional_parts=frozenset(
        {Part.SUB_NORMS, Part.INPUT_NORMS, Part.QKV_BIASES, Part.OUTPUT_BIAS, Part.FFN_BIASES}
    ),
)
