"""Other projects' tensor names are normalized to those of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitexport.checkpoint.spelling import respell
from bitexport.convert import convert
from bitexport.errors import CheckpointError
from tests.support.tiny_models import save_checkpoint, tiny_model

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
        (f"_orig_mod.{MLP}up_proj.weight", f"{MLP}up_proj.weight"),
        (f"module._orig_mod.{MLP}up_proj.weight", f"{MLP}up_proj.weight"),
        (f"base_model.model.{MLP}up_proj.weight", f"{MLP}up_proj.weight"),
        (f"_fsdp_wrapped_module.{MLP}_checkpoint_wrapped_module.up_proj.weight", f"{MLP}up_proj.weight"),
        (
            "model.layers.3._fsdp_wrapped_module._orig_mod.mlp.up_proj.weight",
            "model.layers.3.mlp.up_proj.weight",
        ),
        ("model.language_model.layers.3.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight"),
        ("language_model.model.layers.3.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        (f"module.{MLP}down_proj.0.weight", f"{MLP}ffn_sub_norm.weight"),
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
        "model.module.weight",
        "a_module.weight",
        "vision.model.embed_tokens.weight",
    ],
)
def test_other_names_are_unchanged(name: str) -> None:
    assert respell({name: 1, "lm_head.weight": 2}) == {name: 1, "lm_head.weight": 2}


def test_two_spellings_of_the_same_tensor() -> None:
    names = (f"{MLP}ffn_sub_norm.weight", f"{MLP}down_proj.0.weight")
    with pytest.raises(CheckpointError, match=r"ffn_sub_norm\.weight.*down_proj\.0\.weight.*two spellings"):
        respell(dict.fromkeys(names, 1))


def test_a_prefix_that_all_names_share() -> None:
    names = ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"]
    assert list(respell({f"student.net.{name}": 1 for name in names})) == names


def test_a_name_with_and_without_a_prefix() -> None:
    names = (f"_orig_mod.{MLP}up_proj.weight", f"{MLP}up_proj.weight")
    with pytest.raises(CheckpointError, match=r"'_orig_mod\..*up_proj\.weight' and 'model\..* two spellings"):
        respell(dict.fromkeys(names, 1))


SAVED = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "data parallel": lambda name: f"module.{name}",
    "wrapped blocks": lambda name: name.replace(".mlp.", "._checkpoint_wrapped_module.mlp."),
    "language model": lambda name: name.replace("model.", "model.language_model.", 1),
    "attribute": lambda name: f"student.{name}",
}


@pytest.mark.parametrize("saved", SAVED)
def test_the_same_file_whatever_the_prefix(tmp_path: Path, gguf_of: Callable[..., Path], saved: str) -> None:
    folder = save_checkpoint(
        tiny_model(), tmp_path / "packed-multiply", "packed-multiply", rename=SAVED[saved]
    )
    convert(folder, tmp_path / "x.gguf", embed_type="f16")
    assert (tmp_path / "x.gguf").read_bytes() == gguf_of("packed-multiply").read_bytes()


def test_pytorch_loads_them_for_parity(tmp_path: Path, checkpoint_of: Callable[..., Path]) -> None:
    from bitexport.reference import load_reference

    def rename(name: str) -> str:
        return "module." + name.replace(".mlp.", "._checkpoint_wrapped_module.mlp.")

    folder = save_checkpoint(tiny_model(), tmp_path / "c", "master", rename=rename)
    expected = load_reference(checkpoint_of()).logits([0, 5, 7])
    np.testing.assert_array_equal(load_reference(folder).logits([0, 5, 7]), expected)


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
