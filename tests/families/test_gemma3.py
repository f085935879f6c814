"""Gemma 3's config.json: both spellings of its RoPE and layer types, and what the graph cannot run."""

from __future__ import annotations

import re
from typing import Any

import pytest
from transformers import Gemma3TextConfig

from bitexport.errors import CheckpointError, UnsupportedError
from bitexport.families import family_of
from bitexport.families.gemma3 import GEMMA3

NORM = "model.layers.0.mlp.down_proj.rms_norm.weight"

CONFIG: dict[str, Any] = {
    "architectures": ["Gemma3TextModel"],
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "sliding_window": 16,
}


def test_the_defaults_are_those_of_transformers() -> None:
    expected = Gemma3TextConfig(**{key: value for key, value in CONFIG.items() if key != "architectures"})
    numbers = GEMMA3.hyperparameters(CONFIG, [NORM])
    assert numbers.tied == expected.tie_word_embeddings
    assert numbers.head_dim == expected.head_dim
    assert numbers.rope.theta == expected.rope_parameters["full_attention"]["rope_theta"]
    assert numbers.local_theta == expected.rope_parameters["sliding_attention"]["rope_theta"]
    assert numbers.sliding == tuple(kind == "sliding_attention" for kind in expected.layer_types)
    assert numbers.attention_scale == pytest.approx(expected.query_pre_attn_scalar**-0.5)
    assert numbers.window == expected.sliding_window
    assert numbers.causal


def test_the_keys_of_both_spellings_are_equal() -> None:
    old = {"rope_theta": 5e5, "rope_local_base_freq": 2e4, "sliding_window_pattern": 3}
    new = {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 5e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
        },
        "layer_types": [("full" if layer % 3 == 2 else "sliding") + "_attention" for layer in range(7)],
    }
    first, second = (
        GEMMA3.metadata(GEMMA3.hyperparameters({**CONFIG, **given}, [NORM])) for given in (old, new)
    )
    assert first == second
    assert first["gemma3.attention.sliding_window_pattern"] == [1, 1, 0, 1, 1, 0, 1]
    assert first["gemma3.rope.freq_base_swa"] == 2e4


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"layer_types": ["full_attention"]}, CheckpointError, "expected 7 entries"),
        ({"attn_logit_softcapping": 50.0}, UnsupportedError, "attn_logit_softcapping is 50.0"),
        ({"hidden_activation": "silu"}, UnsupportedError, "hidden_activation 'silu'"),
        ({"query_pre_attn_scalar": 0}, CheckpointError, "query_pre_attn_scalar is 0"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2}}, UnsupportedError, "rope_type 'yarn'"),
    ],
)
def test_what_the_graph_cannot_run(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        GEMMA3.hyperparameters({**CONFIG, **changes}, [NORM])


def test_only_a_gemma_with_more_norms_is_of_this_family() -> None:
    assert family_of(CONFIG, [NORM]) is GEMMA3
    sub_norm = "model.layers.0.mlp.ffn_sub_norm.weight"
    assert family_of({**CONFIG, "architectures": ["Gemma3ForCausalLM"]}, [sub_norm]) is GEMMA3
    with pytest.raises(UnsupportedError, match="this checkpoint has none of these norms"):
        family_of(CONFIG, ["model.layers.0.mlp.down_proj.weight"])
