"""BitNet b1.58 (2B4T): ReLU squared, and a norm in front of the output layers of attention and MLP (SubLN).

config.json does not say whether a model has SubLN; its tensors show it.

With ``hidden_act`` silu it is a Llama with SubLN: distilled Llamas are saved as this architecture.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from bitexport.families.parts import Part
from bitexport.families.rules import decoder_rules
from bitexport.families.ternary_decoder import TernaryDecoder


@dataclass(frozen=True, kw_only=True)
class BitNetFamily(TernaryDecoder):
    """BitNet, of which transformers knows only the model with SubLN."""

    def parts(self, config: Mapping[str, Any], names: Collection[str]) -> frozenset[Part]:
        """SubLN is optional, but without names to look for it is what config.json describes."""
        found = super().parts(config, names)
        return found if names else found | {Part.SUB_NORMS}


BITNET = BitNetFamily(
    name="BitNet b1.58",
    summary="with or without SubLN; ReLU squared or SiLU",
    architectures=("BitNetForCausalLM",),
    model_class="BitNetForCausalLM",
    activations=("relu2", "silu"),
    default_theta=500000.0,
    default_eps=1e-5,
    rules=decoder_rules(),
    optional_parts=frozenset({Part.SUB_NORMS, Part.INPUT_NORMS, Part.QKV_BIASES, Part.OUTPUT_BIAS}),
)
