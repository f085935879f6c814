"""The name map of Llama-like decoders, shared by the families."""

from __future__ import annotations

from dataclasses import replace

from bitexport.families.base import Role, Rule
from bitexport.families.parts import Part

#: The linear layers of a decoder layer: names on both sides, dimensions (out, in), and the part of the bias.
LINEAR = (
    ("self_attn.q_proj", "attn_q", "q", "hidden", Part.QKV_BIASES),
    ("self_attn.k_proj", "attn_k", "kv", "hidden", Part.QKV_BIASES),
    ("self_attn.v_proj", "attn_v", "kv", "hidden", Part.QKV_BIASES),
    ("self_attn.o_proj", "attn_output", "hidden", "q", Part.OUTPUT_BIAS),
    ("mlp.gate_proj", "ffn_gate", "ffn", "hidden", Part.FFN_BIASES),
    ("mlp.up_proj", "ffn_up", "ffn", "hidden", Part.FFN_BIASES),
    ("mlp.down_proj", "ffn_down", "hidden", "ffn", Part.FFN_BIASES),
)

#: The layers whose output RoPE rotates.
ROTATED = ("attn_q", "attn_k")


def decoder_rules(
    *,
    q_norm: str = "self_attn.q_norm",
    k_norm: str = "self_attn.k_norm",
    head: bool = True,
    post_norms: bool = False,
) -> tuple[Rule, ...]:
    """The rules of a decoder with gated MLPs and RMSNorms, including those of every optional part.

    Args:
        q_norm, k_norm: the family's names of these norms.
        head: whether the graph supports a separate output matrix.
        post_norms: whether attention and MLP are also followed by a norm, as in Gemma.
    """
    first = (
        Rule("model.embed_tokens.weight", "token_embd.weight", Role.EMBEDDING, ("vocab", "hidden")),
        _norm("input_layernorm", "attn_norm", "hidden"),
    )
    attention = [_linear(*names) for names in LINEAR[:4]]
    ffn = [_linear(*names) for names in LINEAR[4:]]
    between = [_norm("post_attention_layernorm", "ffn_norm", "hidden")]
    after = []
    if post_norms:
        between = [
            _norm("post_attention_layernorm", "post_attention_norm", "hidden"),
            _norm("pre_feedforward_layernorm", "ffn_norm", "hidden"),
        ]
        after = [_norm("post_feedforward_layernorm", "post_ffw_norm", "hidden")]
    last = (
        Rule("model.norm.weight", "output_norm.weight", Role.NORM, ("hidden",)),
        Rule("lm_head.weight", "output.weight", Role.EMBEDDING, ("vocab", "hidden")),
    )
    return (
        *first,
        *_flat(attention[:3]),
        _norm(q_norm, "attn_q_norm", "head", Part.QK_NORMS),
        _norm(k_norm, "attn_k_norm", "head", Part.QK_NORMS),
        _norm("self_attn.attn_sub_norm", "attn_sub_norm", "q", Part.SUB_NORMS),
        *attention[3],
        *between,
        *_flat(ffn[:2]),
        _norm("mlp.ffn_sub_norm", "ffn_sub_norm", "ffn", Part.SUB_NORMS),
        *ffn[2],
        *after,
        *(last if head else last[:1]),
    )


def _linear(source: str, target: str, out: str, into: str, bias: Part) -> tuple[Rule, Rule, Rule]:
    """The rules of a linear layer: the norm in front of it, its weight and its bias."""
    source, target = f"model.layers.{{layer}}.{source}", f"blk.{{layer}}.{target}"
    weight = Rule(f"{source}.weight", f"{target}.weight", Role.TERNARY, (out, into))
    if target.endswith(ROTATED):
        weight = replace(weight, rotated=True)
    return (
        Rule(
            f"{source}.rms_norm.weight",
            f"{target}_norm_in.weight",
            Role.NORM,
            (into,),
            part=Part.INPUT_NORMS,
            linear=weight.source,
        ),
        weight,
        Rule(
            f"{source}.bias",
            f"{target}.bias",
            Role.BIAS,
            (out,),
            rotated=weight.rotated,
            part=bias,
            linear=weight.source,
        ),
    )


def _norm(source: str, target: str, size: str, part: Part | None = None) -> Rule:
    source, target = f"model.layers.{{layer}}.{source}.weight", f"blk.{{layer}}.{target}.weight"
    return Rule(source, target, Role.NORM, (size,), part=part)


def _flat(groups: list[tuple[Rule, Rule, Rule]]) -> list[Rule]:
    return [rule for group in groups for rule in group]
