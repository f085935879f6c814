"""HunYuan dense (for example HY-MT1.5) as a distilled student: norms on queries and keys after RoPE, SubLN.

Its RoPE has a fixed ``alpha`` that scales the base: theta * alpha^(head_dim / (head_dim - 2)).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitexport.families.parts import Part
from bitexport.families.rope import Rope, read_alpha_rope
from bitexport.families.rules import decoder_rules
from bitexport.families.ternary_decoder import TernaryDecoder


@dataclass(frozen=True, kw_only=True)
class HunyuanFamily(TernaryDecoder):
    """HunYuan dense, whose RoPE may have an ``alpha``."""

    def _rope(self, config: Mapping[str, Any], head_dim: int) -> Rope:
        return read_alpha_rope(config, self.default_theta, head_dim)


HUNYUAN = HunyuanFamily(
    name="HunYuan student",
    summary="HunYuan dense, with or without SubLN; QK-norm after RoPE, RoPE alpha",
    architectures=("HunYuanDenseV1ForCausalLM", "HunYuanDenseV1SubLNForCausalLM"),
    model_class="HunYuanDenseV1ForCausalLM",
    activations=("silu", "relu2"),
    default_theta=10000.0,
    default_eps=1e-5,
    rules=decoder_rules(q_norm="self_attn.query_layernorm", k_norm="self_attn.key_layernorm"),
    required_parts=frozenset({Part.QK_NORMS}),
    optional_parts=frozenset({Part.SUB_NORMS, Part.INPUT_NORMS, Part.QKV_BIASES, Part.OUTPUT_BIAS}),
    qk_norm_after_rope=True,
)
