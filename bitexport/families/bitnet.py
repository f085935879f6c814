"""BitNet b1.58 (2B4T): ReLU squared, a norm in front of the attention's and the MLP's output layers (SubLN).

RoPE turns the two halves of a head against each other on both sides, so no row moves.
"""

from __future__ import annotations

from bitexport.families.base import Family, Role, Rule

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
        "model.layers.{layer}.self_attn.attn_sub_norm.weight",
        "blk.{layer}.attn_sub_norm.weight",
        Role.NORM,
        ("q",),
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
        "model.layers.{layer}.mlp.ffn_sub_norm.weight", "blk.{layer}.ffn_sub_norm.weight", Role.NORM, ("ffn",)
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

BITNET = Family(
    name="BitNet b1.58",
    architectures=("BitNetForCausalLM",),
    gguf_architecture="bitnet-b1.58",
    activation="relu2",
    default_theta=500000.0,
    default_eps=1e-5,
    rules=RULES,
)
