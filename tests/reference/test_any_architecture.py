"""Any class of transformers as the reference: names, experts, and what is not available."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from bitexport.checkpoint import open_checkpoint
from bitexport.errors import UnsupportedError
from bitexport.reference import load_reference
from bitexport.reference.any_architecture import gguf_names
from bitexport.reference.delivered import deliver
from bitexport.reference.grids import Grid, on_grid
from bitexport.reference.ternary_layers import TernaryExperts
from tests.support.scale_groups import with_groups
from tests.support.tiny_models import tiny_checkpoint


@pytest.mark.parametrize(
    ("architecture", "source", "target"),
    [
        ("qwen3moe", "model.layers.1.mlp.experts.3.gate_proj.weight", "blk.1.ffn_gate_exps.weight"),
        ("qwen2moe", "model.layers.0.mlp.shared_expert.up_proj.weight", "blk.0.ffn_up_shexp.weight"),
        ("gemma3", "model.layers.0.post_attention_layernorm.weight", "blk.0.post_attention_norm.weight"),
        ("llama", "model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
        ("qwen3next", "model.layers.0.linear_attn.in_proj_qkvz.weight", "blk.0.attn_qkv.weight"),
        ("gemma3", "model.language_model.layers.1.mlp.up_proj.weight", "blk.1.ffn_up.weight"),
        ("llama", "model.layers.0.self_attn.other.weight", None),
    ],
)
def test_gguf_names(architecture: str, source: str, target: str | None) -> None:
    assert gguf_names(architecture, 2)(source) == target


def test_an_architecture_that_is_not_known() -> None:
    with pytest.raises(UnsupportedError, match="no architecture 'nothing'"):
        gguf_names("nothing", 2)


def experts() -> Qwen3MoeExperts:
    config = Qwen3MoeConfig(
        hidden_size=32, moe_intermediate_size=64, num_experts=4, experts_implementation="eager"
    )
    original = Qwen3MoeExperts(config)
    torch.manual_seed(0)
    for parameter in original.parameters():
        parameter.data.normal_()
    return original


NAMES = {
    "gate": "blk.0.ffn_gate_exps.weight",
    "up": "blk.0.ffn_up_exps.weight",
    "down": "blk.0.ffn_down_exps.weight",
}


def test_experts_compute_what_transformers_computes() -> None:
    original, x = experts(), torch.randn(6, 32)
    index = torch.tensor([[0, 2], [2, 3], [3, 0], [2, 0], [0, 3], [3, 2]])
    weights = torch.rand(6, 2)
    ours = TernaryExperts(original, NAMES, dict.fromkeys(NAMES, Grid.FLOAT))
    with torch.inference_mode():
        torch.testing.assert_close(ours(x, index, weights), original(x, index, weights))


def test_experts_round_each_input_per_token_in_the_order_of_the_tokens() -> None:
    x, index = torch.randn(6, 32), torch.tensor([[0, 2], [2, 3], [3, 0], [2, 0], [0, 3], [3, 2]])
    ours = TernaryExperts(experts(), NAMES, dict.fromkeys(NAMES, Grid.TOKEN))
    seen: dict[tuple[str, int], torch.Tensor] = {}
    honest = ours.product

    def product(name: str, expert: int, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        seen[name, expert] = rows
        result = honest(name, expert, rows, weight)
        torch.testing.assert_close(result, on_grid(rows, Grid.TOKEN) @ weight.T)
        return result

    ours.product = product
    with torch.inference_mode():
        ours(x, index, torch.ones(6, 2))
    assert {expert for _, expert in seen} == {0, 2, 3}
    assert torch.equal(seen["gate", 2], x[[0, 1, 3, 5]])
    assert torch.equal(seen["up", 2], x[[0, 1, 3, 5]])
    assert seen["down", 2].shape == (4, 64)


def test_a_tensor_decides_for_itself_whether_it_is_ternary(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "a", "master", architecture="llama")
    checkpoint = open_checkpoint(with_groups(source, tmp_path / "b", 64, dtype=torch.float16))
    found = deliver(checkpoint)
    assert found.grid is Grid.FLOAT
    assert found.ternary == {name for name in checkpoint.tensors if name.endswith("_proj.weight")}
    for name, value in found.state.items():
        assert torch.equal(value, torch.from_numpy(checkpoint.read(name).copy()).float())


def test_no_class_in_transformers(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "a", "master", architecture="llama")
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["PlamoForCausalLM"], "model_type": "plamo"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=r"has no class PlamoForCausalLM.*no PyTorch side"):
        load_reference(folder)
