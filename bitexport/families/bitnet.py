"""BitNet b1.58 (2B4T): ReLU squared, a norm in front of the attention's and the MLP's output layers (SubLN).

RoPE turns the two halves of a head against each other on both sides, so no row moves.
"""

from __future__ import annotations

from bitexport.families.base import Family
from bitexport.families.rules import decoder_rules

BITNET = Family(
    name="BitNet b1.58",
    architectures=("BitNetForCausalLM",),
    gguf_architecture="bitnet-b1.58",
    activation="relu2",
    default_theta=500000.0,
    default_eps=1e-5,
    rules=decoder_rules(sub_norms=True),
)
