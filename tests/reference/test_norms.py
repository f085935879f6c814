"""The norms added to transformers' classes act where they should and change nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from bitexport.reference import load_reference
from bitexport.reference.model import eager
from tests.support.family_cases import CASES, made, sequential
from tests.support.tiny_models import save_checkpoint, tiny_model

IDS = [0, 17, 33, 250, 99, 4, 61, 300, 12, 5]


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread, as for small models: the order of a sum depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def saved(folder: Path, architecture: str, packing: str = "master", **options: Any) -> Path:
    model = tiny_model(architecture=architecture, **options.pop("model", {}))
    return save_checkpoint(model, folder, packing, **options)


@pytest.mark.parametrize("packing", ["master", "packed-multiply", "packed-divide"])
def test_a_llama_with_sub_norms_is_a_bitnet_with_silu(tmp_path: Path, packing: str) -> None:
    """Bit for bit: a Llama with added SubLN against transformers' own class with SubLN."""
    llama = load_reference(saved(tmp_path / "llama", "llama-student", packing)).logits(IDS)
    silu = {"hidden_act": "silu", "rope_theta": 10000.0, "rms_norm_eps": 1e-6}
    # random values are drawn in the order of the parameters, which differs, so copy the tensors
    bitnet = saved(tmp_path / "bitnet", "bitnet", packing, model=silu)
    (bitnet / "model.safetensors").write_bytes((tmp_path / "llama" / "model.safetensors").read_bytes())
    np.testing.assert_array_equal(llama, load_reference(bitnet).logits(IDS))


@pytest.mark.parametrize("packing", ["master", "packed-multiply", "packed-divide"])
def test_moving_the_norm_of_use_rms_norm_changes_no_bit(tmp_path: Path, packing: str) -> None:
    quantization = {"use_rms_norm": True, "rms_norm_eps": 1e-3}
    folder = saved(tmp_path, "llama", packing, model={"input_norms": True}, quantization=quantization)
    untouched = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode(), eager(), one_thread():
        expected = untouched(torch.tensor([IDS])).logits[0].numpy()
    np.testing.assert_array_equal(load_reference(folder).logits(IDS), expected)


def test_a_spelling_changes_no_bit(tmp_path: Path) -> None:
    expected = load_reference(saved(tmp_path / "a", "llama-student")).logits(IDS)
    found = load_reference(saved(tmp_path / "b", "llama-student", rename=sequential)).logits(IDS)
    np.testing.assert_array_equal(found, expected)


def test_the_norms_of_sub_ln_take_part(tmp_path: Path) -> None:
    reference = load_reference(saved(tmp_path, "qwen2-student", tokenizer="qwen2"))
    before = reference.logits(IDS)
    for module in (reference.model.model.layers[1].self_attn, reference.model.model.layers[1].mlp):
        norm = module.attn_sub_norm if hasattr(module, "attn_sub_norm") else module.ffn_sub_norm
        norm.weight.data[: len(norm.weight) // 2] *= 3
        after = reference.logits(IDS)
        assert np.abs(after - before).max() > 0.01
        before = after


def test_weights_that_are_ternary_already_are_not_quantized_again(tmp_path: Path) -> None:
    """The same model three times: packed, dequantized with quantization_mode online, and without one."""
    model = tiny_model(architecture="llama")
    packed = load_reference(save_checkpoint(model, tmp_path / "packed", "packed-multiply")).logits(IDS)
    folder = save_checkpoint(model, tmp_path / "dequantized", "pre-dequantized")
    weight_only = load_reference(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    expected = plain(torch.tensor([IDS])).logits[0].detach().numpy()
    config = json.loads((folder / "config.json").read_text())
    online = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": online}))
    assert cosine(load_reference(folder).logits(IDS), packed) > 0.999999
    # without quantization_config, activations were not quantized in training either
    assert cosine(weight_only.logits(IDS), expected) > 0.999999
    assert 0.999 < cosine(expected, packed) < 0.99999


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min())


def test_no_norm_is_left_out(tmp_path: Path) -> None:
    """A student whose checkpoint lacks a sub-norm is rejected."""
    from safetensors.torch import load_file, save_file

    from bitexport.errors import CheckpointError

    folder = made(CASES["Qwen3 student"], tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.ffn_sub_norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing.*ffn_sub_norm"):
        load_reference(folder)
