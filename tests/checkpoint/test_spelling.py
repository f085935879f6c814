"""Other projects' tensor names are normalized to those of transformers."""

from __future__ import annotations

import pytest

from bitexport.checkpoint.spelling import respell
from bitexport.errors import CheckpointError

ATTENTION, MLP = "model.layers.12.self_attn.", "model.layers.12.mlp."


@pytest.mark.parametrize(
    ("spelling", "normalized"),
    [
        (f"{ATTENTION}o_proj.0.weight", f"{ATTENTION}attn_sub_norm.weight"),
        (f"{ATTENTION}o_proj.1.weight", f"{ATTENTION}o_proj.weight"),
        (f"{ATTENTION}o_proj.1.weight_scale", f"{ATTENTION}o_proj.weight_scale"),
        (f"{ATTENTION}o_proj.1.bias", f"{ATTENTION}o_proj.bias"),
        (f"{MLP}down_proj.0.weight", f"{MLP}ffn_sub_norm.weight"),
        (f"{MLP}down_proj.1.weight", f"{MLP}down_proj.weight"),
        (f"{ATTENTION}inner_attn_ln.weight", f"{ATTENTION}attn_sub_norm.weight"),
        (f"{MLP}ffn_layernorm.weight", f"{MLP}ffn_sub_norm.weight"),
        (f"{MLP}up_proj.norm.weight", f"{MLP}up_proj.rms_norm.weight"),
    ],
)
def test_a_spelling(spelling: str, normalized: str) -> None:
    assert respell({spelling: 1}) == {normalized: 1}


@pytest.mark.parametrize(
    "name",
    [
        f"{ATTENTION}o_proj.weight",
        f"{ATTENTION}q_norm.weight",
        f"{MLP}gate_proj.0.weight",
        f"{MLP}down_proj.2.weight",
        "model.norm.weight",
        "model.layers.12.mlp.experts.0.down_proj.1.weight",
    ],
)
def test_other_names_are_unchanged(name: str) -> None:
    assert respell({name: 1}) == {name: 1}


def test_two_spellings_of_the_same_tensor() -> None:
    names = (f"{MLP}ffn_sub_norm.weight", f"{MLP}down_proj.0.weight")
    with pytest.raises(CheckpointError, match=r"ffn_sub_norm\.weight.*down_proj\.0\.weight.*two spellings"):
        respell(dict.fromkeys(names, 1))


def test_a_model_saved_without_its_head_gets_the_prefix() -> None:
    names = ["embed_tokens.weight", "norm.weight", "layers.1.self_attn.q_proj.norm.weight", "lm_head.weight"]
    expected = [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.1.self_attn.q_proj.rms_norm.weight",
        "lm_head.weight",
    ]
    assert list(respell(dict.fromkeys(names, 0))) == expected
    assert list(respell({"model.norm.weight": 0, "norm.weight": 0})) == ["model.norm.weight", "norm.weight"]
