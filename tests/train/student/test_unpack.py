"""Master weights made from packed ones quantize to the packed ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bitexport.errors import UnsupportedError
from bitexport.reference.model import load_tokenizer
from bitexport.train.student.bitlinear import BitLinear, quantize_weight
from bitexport.train.student.checkpoint import load_causal_lm, save_checkpoint
from bitexport.train.student.pack import export_packed, quantize_as_forward
from bitexport.train.student.unpack import master_weights
from tests.support.repository import EN_FR, TINY_PYTHON
from tests.train.student.test_checkpoint import trained
from tests.train.student.test_surgery import batch, logits


@pytest.mark.parametrize("packed", [EN_FR, TINY_PYTHON], ids=lambda folder: folder.name)
def test_a_shipped_student_is_packed_again_to_the_same_bytes(packed: Path, tmp_path: Path) -> None:
    model = load_causal_lm(packed)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    save_checkpoint(model, load_tokenizer(packed), tmp_path / "master")
    export_packed(tmp_path / "master", tmp_path / "packed")
    found, shipped = (load_file(folder / "model.safetensors") for folder in (tmp_path / "packed", packed))
    assert found.keys() == shipped.keys()
    for name, tensor in shipped.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_students_of_other_classes(architecture: str, tmp_path: Path) -> None:
    """With biases, which are stored divided by the scale, and with norms that their class lacks."""
    student = trained(architecture, tmp_path)
    export_packed(tmp_path / "student", tmp_path / "packed")
    loaded = load_causal_lm(tmp_path / "packed")
    assert type(loaded).__name__ == type(student).__name__
    layers = {name: layer for name, layer in student.named_modules() if isinstance(layer, BitLinear)}
    assert layers
    for name, layer in layers.items():
        found = loaded.get_submodule(name)
        assert torch.equal(quantize_weight(found.weight), quantize_weight(layer.weight)), name
        if layer.bias is not None:
            torch.testing.assert_close(found.bias, layer.bias)
    rounded = student.get_input_embeddings()
    rounded.weight.data = rounded.weight.data.half().float()
    if architecture == "qwen3":
        student.lm_head.weight.data = student.lm_head.weight.data.half().float()
    torch.testing.assert_close(logits(loaded, batch(2)), logits(student, batch(2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spread", [0.01, 1.0, 40.0])
@pytest.mark.parametrize("shape", [(4, 5), (300, 1000)])
def test_the_scale_is_the_same_but_for_its_last_bit(shape: tuple[int, int], spread: float) -> None:
    """Whatever the share of zeros, and the rounding of the mean."""
    random = torch.manual_seed(sum(shape))
    weight = torch.randn(shape, generator=random).sign() * torch.rand(shape, generator=random) ** spread
    ternary = quantize_as_forward(weight, "w")
    values = torch.from_numpy(ternary.dequantize())
    found = quantize_as_forward(master_weights(values, "w"), "w")
    np.testing.assert_array_equal(found.trits, ternary.trits)
    np.testing.assert_array_max_ulp(found.scale, ternary.scale, maxulp=1)


def test_what_training_cannot_quantize_to_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"tensor 'w' has only zeros; expected one scale"):
        master_weights(torch.zeros(4, 4), "w")
    with pytest.raises(UnsupportedError, match=r"tensor 'w' has several scales; expected one scale"):
        master_weights(torch.tensor([[1.0, 0.0], [0.5, 1.0]]), "w")
    with pytest.raises(UnsupportedError, match=r"scale 1e-07, which quantization in training cannot give"):
        master_weights(torch.full((4, 4), 1e-7), "w")


def test_scales_per_row_are_refused(tmp_path: Path) -> None:
    shutil.copytree(EN_FR, tmp_path / "rows")
    tensors = load_file(EN_FR / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight_scale"
    tensors[name] = tensors[name] * torch.linspace(1, 2, 512)[:, None]
    save_file(tensors, tmp_path / "rows" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedError, match=r"up_proj.weight' has several scales"):
        load_causal_lm(tmp_path / "rows")


def test_packed_weights_of_another_layer_class_are_refused(tmp_path: Path) -> None:
    shutil.copytree(EN_FR, tmp_path / "other")
    config = json.loads((EN_FR / "config.json").read_text())
    config["quantization_config"]["linear_class"] = "bitlinear"
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=r"\['bitlinear', 'offline', False\]; expected .* \(packed\)"):
        load_causal_lm(tmp_path / "other")
