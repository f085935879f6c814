"""The name map of Llama-like decoders, which the families share: with and without the norms of SubLN."""

from __future__ import annotations

from bitexport.families.base import Role, Rule


def decoder_rules(*, sub_norms: bool) -> tuple[Rule, ...]:
    """The rules of a decoder with gated MLPs and RMSNorms.

    Args:
        sub_norms: whether a norm stands in front of the attention's and of the MLP's output layer (SubLN).
    """
    attention_norm = (_norm("self_attn.attn_sub_norm", "attn_sub_norm", "q"),) if sub_norms else ()
    ffn_norm = (_norm("mlp.ffn_sub_norm", "ffn_sub_norm", "ffn"),) if sub_norms else ()
    return (
        Rule("model.embed_tokens.weight", "token_embd.weight", Role.EMBEDDING, ("vocab", "hidden")),
        _norm("input_layernorm", "attn_norm", "hidden"),
        _linear("self_attn.q_proj", "attn_q", "q", "hidden", rotated=True),
        _linear("self_attn.k_proj", "attn_k", "kv", "hidden", rotated=True),
        _linear("self_attn.v_proj", "attn_v", "kv", "hidden"),
        *attention_norm,
        _linear("self_attn.o_proj", "attn_output", "hidden", "q"),
        _norm("post_attention_layernorm", "ffn_norm", "hidden"),
        _linear("mlp.gate_proj", "ffn_gate", "ffn", "hidden"),
        _linear("mlp.up_proj", "ffn_up", "ffn", "hidden"),
        *ffn_norm,
        _linear("mlp.down_proj", "ffn_down", "hidden", "ffn"),
        Rule("model.norm.weight", "output_norm.weight", Role.NORM, ("hidden",)),
        Rule("lm_head.weight", "output.weight", Role.EMBEDDING, ("vocab", "hidden")),
    )


def _linear(source: str, target: str, out: str, into: str, *, rotated: bool = False) -> Rule:
    return _in_layer(source, target, Role.TERNARY, (out, into), rotated)


def _norm(source: str, target: str, size: str) -> Rule:
    return _in_layer(source, target, Role.NORM, (size,), False)


def _in_layer(source: str, target: str, role: Role, shape: tuple[str, ...], rotated: bool) -> Rule:
    return Rule(
        f"model.layers.{{layer}}.{source}.weight", f"blk.{{layer}}.{target}.weight", role, shape, rotated
    )
