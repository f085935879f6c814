"""The families: names in both directions, shapes, hyper-parameters, and the row order for RoPE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitexport.checkpoint import open_checkpoint
from bitexport.errors import CheckpointError, UnsupportedError
from bitexport.families import FAMILIES, Family, Role, family_of
from bitexport.families.bitnet import BITNET
from bitexport.families.hunyuan import HUNYUAN
from bitexport.families.llama import LLAMA
from bitexport.families.llama_student import LLAMA_STUDENT
from bitexport.families.onebitllm import ONEBITLLM
from bitexport.families.qwen2 import QWEN2
from bitexport.families.qwen3 import QWEN3
from bitexport.families.rope import Rope, llama3_divisors, read_rope
from tests.support.tiny_models import Shape

CONFIG: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def config(**changes: Any) -> dict[str, Any]:
    return {**CONFIG, **changes}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_names_map_in_both_directions(family: Family) -> None:
    tied = family is ONEBITLLM
    numbers = family.hyperparameters(config(tie_word_embeddings=tied, num_hidden_layers=12))
    numbers = replace(numbers, parts=family.required_parts | family.optional_parts)
    claims = family.claims(numbers)
    assert len({claim.source for claim in claims}) == len({claim.target for claim in claims}) == len(claims)
    for claim in claims:
        assert family.gguf_name(claim.source) == claim.target
        assert family.source_name(claim.target) == claim.source


def test_names_of_the_official_file() -> None:
    assert BITNET.gguf_name("model.layers.29.self_attn.attn_sub_norm.weight") == "blk.29.attn_sub_norm.weight"
    assert BITNET.gguf_name("model.layers.0.mlp.ffn_sub_norm.weight") == "blk.0.ffn_sub_norm.weight"
    assert BITNET.source_name("blk.3.attn_output.weight") == "model.layers.3.self_attn.o_proj.weight"
    for name in (
        "model.layers.x.mlp.up_proj.weight",
        "model.layers.01.mlp.up_proj.weight",
        "model.layers.1.mlp.up_proj",
    ):
        assert BITNET.gguf_name(name) is None


def test_the_official_shape_has_the_official_tensors() -> None:
    numbers = BITNET.hyperparameters(
        config(
            hidden_size=2560,
            intermediate_size=6912,
            num_hidden_layers=30,
            num_attention_heads=20,
            num_key_value_heads=5,
            vocab_size=128256,
            max_position_embeddings=4096,
            rope_theta=500000.0,
        )
    )
    claims = BITNET.claims(numbers)
    roles = [claim.role for claim in claims]
    assert (len(claims), roles.count(Role.NORM), roles.count(Role.TERNARY)) == (332, 121, 210)
    assert BITNET.metadata(numbers) == {
        "bitnet-b1.58.vocab_size": 128256,
        "bitnet-b1.58.context_length": 4096,
        "bitnet-b1.58.embedding_length": 2560,
        "bitnet-b1.58.block_count": 30,
        "bitnet-b1.58.feed_forward_length": 6912,
        "bitnet-b1.58.rope.dimension_count": 128,
        "bitnet-b1.58.attention.head_count": 20,
        "bitnet-b1.58.attention.head_count_kv": 5,
        "bitnet-b1.58.attention.layer_norm_rms_epsilon": 1e-5,
        "bitnet-b1.58.rope.freq_base": 500000.0,
    }


@pytest.mark.parametrize("architecture", ["bitnet", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_claims_equal_the_tensors_that_transformers_saves(
    checkpoint_of: Callable[..., Path], architecture: str, tied: bool
) -> None:
    shape = Shape(hidden=128, ffn=256, heads=4, kv_heads=1, vocab=416)
    checkpoint = open_checkpoint(checkpoint_of("master", architecture=architecture, tied=tied, shape=shape))
    family = family_of(checkpoint.config)
    numbers = family.hyperparameters(checkpoint.config)
    claims = {claim.source: claim.shape for claim in family.claims(numbers)}
    assert claims == {name: info.shape for name, info in checkpoint.tensors.items()}


def test_an_explicit_head_dim() -> None:
    numbers = LLAMA.hyperparameters(config(head_dim=32))
    assert numbers.dimensions() == {"vocab": 100, "hidden": 64, "ffn": 96, "q": 128, "kv": 64, "head": 32}
    assert LLAMA.metadata(numbers)["llama.attention.key_length"] == 32
    assert "llama.attention.key_length" not in LLAMA.metadata(LLAMA.hyperparameters(config()))


def test_the_default_number_of_key_value_heads() -> None:
    assert BITNET.hyperparameters(config(num_key_value_heads=None)).kv_heads == 4


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hidden_act": "gelu"}, UnsupportedError, "'gelu'.*computes 'relu2' or 'silu' only"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, UnsupportedError, "sliding-window"),
        (
            {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
            UnsupportedError,
            "sliding-window",
        ),
        (
            {"quantization_config": {"use_rms_norm": True, "rms_norm_eps": 2}},
            CheckpointError,
            "quantization_config's rms_norm_eps is 2",
        ),
        ({"hidden_size": None}, CheckpointError, "hidden_size is None"),
        ({"hidden_size": "64"}, CheckpointError, "hidden_size is '64'"),
        ({"num_hidden_layers": 0}, CheckpointError, "num_hidden_layers is 0"),
        ({"num_attention_heads": True}, CheckpointError, "num_attention_heads is True"),
        ({"num_attention_heads": 5}, CheckpointError, "not a multiple of num_attention_heads 5"),
        ({"num_key_value_heads": 3}, CheckpointError, "3 key-value heads"),
        ({"head_dim": 15}, CheckpointError, "even head_dim"),
        ({"rms_norm_eps": None}, CheckpointError, "rms_norm_eps is None"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, UnsupportedError, "'yarn'"),
        ({"rope_parameters": 3}, CheckpointError, "rope_parameters is 3"),
        ({"rope_parameters": {"full_attention": {}}}, UnsupportedError, "from layer to layer"),
        ({"rope_theta": -1}, CheckpointError, "rope_theta is -1"),
        ({"rope_scaling": {"type": "linear"}}, CheckpointError, "rope factor is None"),
        ({"partial_rotary_factor": 0.5}, UnsupportedError, "partial_rotary_factor 0.5"),
    ],
)
def test_invalid_configs(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        BITNET.hyperparameters(config(**changes))


def test_architectures() -> None:
    assert family_of({"architectures": ["BitNetForCausalLM"]}) is BITNET
    assert family_of({"architectures": ["LlamaForCausalLM"]}) is LLAMA
    with pytest.raises(UnsupportedError, match="'GPT9ForCausalLM'; expected one of BitNetForCausalLM"):
        family_of({"architectures": ["GPT9ForCausalLM"]})
    for broken in ({}, {"architectures": []}, {"architectures": "BitNetForCausalLM"}):
        with pytest.raises(CheckpointError, match="no architectures"):
            family_of(broken)


def test_a_family_is_chosen_by_its_parts() -> None:
    """SubLN has no key in config.json and is recognised by its tensors."""
    sub_norm = "model.layers.0.mlp.ffn_sub_norm.weight"
    llama = config(architectures=["LlamaForCausalLM"])
    assert family_of(llama, ["model.layers.0.mlp.down_proj.weight"]) is LLAMA
    assert family_of(llama, [sub_norm]) is LLAMA_STUDENT
    assert family_of(llama, ["model.layers.0.mlp.down_proj.rms_norm.weight"]) is LLAMA_STUDENT
    assert family_of({**llama, "quantization_config": {"use_rms_norm": True}}) is LLAMA_STUDENT
    assert family_of({**llama, "mlp_bias": True}) is LLAMA_STUDENT
    with pytest.raises(
        UnsupportedError, match=r"'BitNetForCausalLM' with biases in the MLP: the graph bitnet-b1\.58"
    ):
        family_of(config(architectures=["BitNetForCausalLM"], mlp_bias=True))


def test_one_sub_norm_makes_all_of_them_required() -> None:
    """If a checkpoint has one of them, all of them are expected."""
    numbers = LLAMA_STUDENT.hyperparameters(config(), ["model.layers.0.mlp.ffn_sub_norm.weight"])
    names = {claim.source for claim in LLAMA_STUDENT.claims(numbers)}
    assert "model.layers.1.self_attn.attn_sub_norm.weight" in names


@pytest.mark.parametrize(
    ("family", "added"),
    [
        (BITNET, {}),
        (LLAMA_STUDENT, {"hidden_activation": "silu"}),
        (QWEN2, {"hidden_activation": "silu"}),
        (QWEN3, {"hidden_activation": "silu", "attention.qk_norm": "before_rope"}),
        (HUNYUAN, {"hidden_activation": "silu", "attention.qk_norm": "after_rope"}),
    ],
    ids=lambda value: value.name if isinstance(value, Family) else "",
)
def test_the_keys_that_select_the_parts_of_the_graph(family: Family, added: dict[str, Any]) -> None:
    sub_norm = ["model.layers.0.mlp.ffn_sub_norm.weight"]
    plain = BITNET.metadata(BITNET.hyperparameters(config(head_dim=16)))
    found = family.metadata(family.hyperparameters(config(head_dim=16, rope_theta=5e5), sub_norm))
    assert found == {**plain, **{f"bitnet-b1.58.{key}": value for key, value in added.items()}}
    if family is not BITNET:
        without = family.metadata(family.hyperparameters(config(head_dim=16, rope_theta=5e5)))
        assert without == {**found, "bitnet-b1.58.attention.sub_norm": False}


def test_the_default_head_dim_of_qwen3() -> None:
    from transformers import Qwen3Config

    assert QWEN3.hyperparameters(config()).head_dim == Qwen3Config().head_dim == 128


def test_the_alpha_of_hunyuan() -> None:
    """It only makes the base larger, as in transformers; the other settings have no effect."""
    from transformers import HunYuanDenseV1Config
    from transformers.models.hunyuan_v1_dense.modeling_hunyuan_v1_dense import HunYuanDenseV1RotaryEmbedding

    scaling = {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "mscale": 1.0}
    entries = config(head_dim=128, rope_theta=10000.0, rope_scaling=scaling)
    rope = HUNYUAN.hyperparameters(entries).rope
    assert rope.kind == "default"
    assert rope.theta == pytest.approx(11158839.925)
    assert np.float32(rope.theta) == 11158840  # as stored in the file
    peer = HunYuanDenseV1RotaryEmbedding(HunYuanDenseV1Config(**entries))
    frequencies = rope.theta ** -(np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(frequencies, peer.inv_freq.numpy(), rtol=2e-6)
    metadata = HUNYUAN.metadata(HUNYUAN.hyperparameters(entries))
    assert not any("rope.scaling" in key for key in metadata)
    with pytest.raises(UnsupportedError, match="'dynamic'"):
        QWEN3.hyperparameters(entries)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tie_word_embeddings": False}, "no output matrix"),
        ({"head_dim": 32}, "head_dim 32 with 4 heads and hidden_size 64"),
        ({"weight_bits": 2}, "weight_bits is 2"),
        ({"input_bits": 4}, "input_bits is 4"),
        ({"hidden_act": "relu2"}, "computes 'silu' only"),
    ],
)
def test_what_the_graph_of_1bitllm_cannot_run(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        ONEBITLLM.hyperparameters(config(**changes))


def test_rope_in_both_spellings() -> None:
    assert read_rope({"rope_theta": 5e5}, 1e4) == Rope(5e5)
    assert read_rope({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 1e4) == Rope(5e5)
    assert read_rope({}, 1e4) == Rope(1e4)
    linear = Rope(5e5, "linear", 2.0)
    assert read_rope({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}, 1e4) == linear
    assert (
        read_rope({"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2}}, 1e4) == linear
    )
    metadata = BITNET.metadata(BITNET.hyperparameters(config(rope_scaling={"type": "linear", "factor": 2.0})))
    assert metadata["bitnet-b1.58.rope.scaling.type"] == "linear"
    assert metadata["bitnet-b1.58.rope.scaling.factor"] == 2.0


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_llama3_scaling_equals_that_of_transformers(theta: float, head_dim: int) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    parameters = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "original_max_position_embeddings": 8192,
        **scaling,
    }
    peer = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=131072,
        rope_parameters=parameters,
    )
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](peer, device=torch.device("cpu"))
    rope = read_rope({"rope_parameters": parameters}, 1.0)
    divisors = llama3_divisors(rope, head_dim)
    plain = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    np.testing.assert_allclose(plain / divisors, frequencies.numpy(), rtol=1e-6)
    assert (divisors.min(), divisors.max()) == (1.0, 8.0)
    numbers = LLAMA.hyperparameters(config(rope_parameters=parameters))
    assert LLAMA.extra_tensors(numbers).keys() == {"rope_freqs.weight"}
    numbers = BITNET.hyperparameters(config(rope_parameters=parameters))
    assert BITNET.extra_tensors(numbers).keys() == {"rope_freqs.weight"}
    numbers = ONEBITLLM.hyperparameters(config(rope_parameters=parameters))
    with pytest.raises(UnsupportedError, match="llama3"):
        ONEBITLLM.extra_tensors(numbers)


def test_rows_of_q_and_k_are_interleaved_for_llama() -> None:
    numbers = LLAMA.hyperparameters(config(hidden_size=16, num_attention_heads=2, num_key_value_heads=1))
    by_name = {claim.target: claim for claim in LLAMA.claims(numbers)}
    # two heads of 8: row 2 i of a head is its row i, row 2 i + 1 its row 4 + i
    head = [0, 4, 1, 5, 2, 6, 3, 7]
    expected = head + [8 + row for row in head]
    np.testing.assert_array_equal(LLAMA.row_order(by_name["blk.0.attn_q.weight"], numbers), expected)
    np.testing.assert_array_equal(LLAMA.row_order(by_name["blk.0.attn_k.weight"], numbers), head)
    for name in ("blk.0.attn_v.weight", "blk.0.attn_output.weight", "output_norm.weight"):
        assert LLAMA.row_order(by_name[name], numbers) is None
    assert all(BITNET.row_order(claim, numbers) is None for claim in BITNET.claims(numbers))


def test_interleaving_turns_one_rope_into_the_other() -> None:
    """Rotating neighbours after interleaving equals rotating the halves before it."""
    rng = np.random.default_rng(0)
    x, angle = rng.normal(size=8), rng.normal(size=4)
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    c, s = np.cos(angle), np.sin(angle)
    halves = np.concatenate([x[:4] * c - x[4:] * s, x[4:] * c + x[:4] * s])
    even, odd = x[order][0::2], x[order][1::2]
    neighbours = np.empty(8)
    neighbours[0::2], neighbours[1::2] = even * c - odd * s, odd * c + even * s
    np.testing.assert_allclose(neighbours, halves[order])
