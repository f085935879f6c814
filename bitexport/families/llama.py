"""Ternary Llama (Llama-3-8B-1.58, Falcon3-1.58, Falcon-E): llama.cpp's own ``llama`` graph, unchanged.

That graph's RoPE turns neighbouring rows of a head against each other, where transformers turns its two
halves. So
the rows of q and k are interleaved: row ``2 i`` of a head is its row ``i``, and ``2 i + 1`` is ``head_dim / 2
+ i``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitexport.families.base import Claim, Family, Hyperparameters, Role, Rule
from bitexport.families.rope import llama3_divisors

RULES = (
    Rule("model.embed_tokens.weight", "token_embd.weight", Role.EMBEDDING, ("vocab", "hidden")),
    Rule(
        "model.layers.{layer}.input_layernorm.weight", "blk.{layer}.attn_norm.weight", Role.NORM, ("hidden",)
    ),
    Rule(
        "model.layers.{layer}.self_attn.q_proj.weight",
        "blk.{layer}.attn_q.weight",
        Role.TERNARY,
        ("q", "hidden"),
        True,
    ),
    Rule(
        "model.layers.{layer}.self_attn.k_proj.weight",
        "blk.{layer}.attn_k.weight",
        Role.TERNARY,
        ("kv", "hidden"),
        True,
    ),
    Rule(
        "model.layers.{layer}.self_attn.v_proj.weight",
        "blk.{layer}.attn_v.weight",
        Role.TERNARY,
        ("kv", "hidden"),
    ),
    Rule(
        "model.layers.{layer}.self_attn.o_proj.weight",
        "blk.{layer}.attn_output.weight",
        Role.TERNARY,
        ("hidden", "q"),
    ),
    Rule(
        "model.layers.{layer}.post_attention_layernorm.weight",
        "blk.{layer}.ffn_norm.weight",
        Role.NORM,
        ("hidden",),
    ),
    Rule(
        "model.layers.{layer}.mlp.gate_proj.weight",
        "blk.{layer}.ffn_gate.weight",
        Role.TERNARY,
        ("ffn", "hidden"),
    ),
    Rule(
        "model.layers.{layer}.mlp.up_proj.weight",
        "blk.{layer}.ffn_up.weight",
        Role.TERNARY,
        ("ffn", "hidden"),
    ),
    Rule(
        "model.layers.{layer}.mlp.down_proj.weight",
        "blk.{layer}.ffn_down.weight",
        Role.TERNARY,
        ("hidden", "ffn"),
    ),
    Rule("model.norm.weight", "output_norm.weight", Role.NORM, ("hidden",)),
    Rule("lm_head.weight", "output.weight", Role.EMBEDDING, ("vocab", "hidden")),
)


class LlamaFamily(Family):
    """Llama, whose query and key rows are interleaved."""

    def row_order(self, claim: Claim, numbers: Hyperparameters) -> npt.NDArray[np.intp] | None:
        """Interleave the halves of each head of q and k."""
        if not claim.rotated:
            return None
        rows = np.arange(claim.shape[0], dtype=np.intp)
        return rows.reshape(-1, 2, numbers.head_dim // 2).swapaxes(1, 2).reshape(-1)

    def extra_tensors(self, numbers: Hyperparameters) -> dict[str, npt.NDArray[np.float32]]:
        """``rope_freqs``, where RoPE is scaled as in Llama 3.1."""
        if numbers.rope.kind == "llama3":
            return {"rope_freqs.weight": llama3_divisors(numbers.rope, numbers.head_dim)}
        return {}


LLAMA = LlamaFamily(
    name="Llama",
    architectures=("LlamaForCausalLM",),
    gguf_architecture="llama",
    activation="silu",
    default_theta=10000.0,
    default_eps=1e-6,
    rules=RULES,
)
