"""1bitLLM's BitNet b1.58, large and 3B: SubLN and SiLU, on llama.cpp's own ``bitnet`` graph, unchanged.

Its linear layers are ternary by definition: the weights are master weights and config.json has no
quantization_config. Its sub-norms are called ``inner_attn_ln`` and ``ffn_layernorm``, see
:mod:`bitexport.checkpoint.spelling`. The graph has no output matrix and no optional parts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from bitexport.errors import UnsupportedError
from bitexport.families.base import Family, Hyperparameters
from bitexport.families.parts import Part
from bitexport.families.rules import decoder_rules


@dataclass(frozen=True, kw_only=True)
class OneBitLLMFamily(Family):
    """1bitLLM, with checks for what its graph cannot run."""

    def hyperparameters(self, config: Mapping[str, Any], names: Collection[str] = ()) -> Hyperparameters:
        """As :meth:`Family.hyperparameters`; the head must be the embedding."""
        found = super().hyperparameters(config, names)
        if not found.tied:
            raise UnsupportedError(
                "tie_word_embeddings is false with architecture BitnetForCausalLM: llama.cpp's bitnet graph "
                "has no output matrix; expected a tied head, or the architecture BitNetForCausalLM"
            )
        if found.head_dim * found.heads != found.hidden:
            raise UnsupportedError(
                f"head_dim {found.head_dim} with {found.heads} heads and hidden_size {found.hidden}: "
                "llama.cpp's bitnet graph does not support it; expected hidden_size / num_attention_heads"
            )
        for key, only in (("weight_bits", 1), ("input_bits", 8)):
            if config.get(key, only) != only:
                raise UnsupportedError(
                    f"config.json: {key} is {config[key]!r}; expected {only}: convert that model elsewhere"
                )
        return found


ONEBITLLM = OneBitLLMFamily(
    name="1bitLLM",
    summary="BitNet b1.58 large and 3B: SubLN, SiLU, tied",
    architectures=("BitnetForCausalLM",),
    model_class="LlamaForCausalLM",
    gguf_architecture="bitnet",
    activations=("silu",),
    default_theta=10000.0,
    default_eps=1e-6,
    rules=decoder_rules(head=False),
    required_parts=frozenset({Part.SUB_NORMS}),
)
