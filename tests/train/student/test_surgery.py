"""Surgery: what it changes and keeps; the student equals one made of transformers' own layers."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import nn
from transformers import MistralConfig, MistralForCausalLM
from transformers.integrations.bitnet import AutoBitLinear, replace_with_bitnet_linear
from transformers.utils.quantization_config import BitNetQuantConfig

from bitexport.errors import UnsupportedError, UsageError
from bitexport.reference.norms import connect_norms, with_sub_norms
from bitexport.train.student.bitlinear import BitLinear
from bitexport.train.student.calibration import calibrate
from bitexport.train.student.pack import FLOAT_HEAD
from bitexport.train.student.surgery import make_student, replace_projections
from tests.support.tiny_models import MODEL_CLASSES, Shape, tiny_model

SMALL = Shape(hidden=64, ffn=128)
FLOAT = ["llama", "qwen2", "qwen3", "hunyuan"]


def float_model(architecture: str = "llama", **options: Any) -> Any:
    head_dim = {} if architecture in ("llama", "qwen2") else {"head_dim": 24}  # not hidden / heads
    return tiny_model(SMALL, architecture=architecture, **head_dim, **options)


def batch(seed: int = 0, size: int = 4, length: int = 20) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 400, (size, length), generator=torch.manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**inputs).logits
    return found


def transformers_student(student: Any, architecture: str) -> Any:
    """The same weights in transformers' own quantized layers."""
    model = with_sub_norms(MODEL_CLASSES[architecture])(student.config)
    online = BitNetQuantConfig.from_dict(FLOAT_HEAD)
    model = replace_with_bitnet_linear(model, ["lm_head"], online)
    model.load_state_dict(copy.deepcopy(student.state_dict()), assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_()
    model.tie_weights()
    connect_norms(model)
    return model.eval()


@pytest.mark.parametrize("architecture", FLOAT)
@pytest.mark.parametrize("tied", [True, False])
def test_a_student_equals_one_of_transformers_layers(architecture: str, tied: bool) -> None:
    student = make_student(float_model(architecture, tied=tied))
    calibrate(student, [batch()])
    reference = transformers_student(student, architecture)
    assert sum(isinstance(module, AutoBitLinear) for module in reference.modules()) == 7 * SMALL.layers
    inputs = batch(1)
    found, expected = (model(**inputs, labels=inputs["input_ids"]) for model in (student, reference))
    assert torch.equal(found.logits, expected.logits)
    found.loss.backward()
    expected.loss.backward()
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    assert gradients.keys() == dict(student.named_parameters()).keys()
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter.grad, gradients[name]), name


@pytest.mark.parametrize("architecture", FLOAT)
def test_what_surgery_changes(architecture: str) -> None:
    model = float_model(architecture)
    before = dict(model.named_parameters())
    student = make_student(model)
    assert student is model
    quantized = [name for name, module in model.named_modules() if isinstance(module, BitLinear)]
    assert len(quantized) == 7 * SMALL.layers
    assert all(name.endswith("_proj") for name in quantized)
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())  # an optimizer may hold them
    added = {name for name in after if name not in before}
    assert added == {
        f"model.layers.{layer}.{norm}.weight"
        for layer in range(SMALL.layers)
        for norm in ("self_attn.attn_sub_norm", "mlp.ffn_sub_norm")
    }
    for name in added:
        norm = model.get_submodule(name.removesuffix(".weight"))
        assert type(norm) is type(model.model.norm)
        assert norm.variance_epsilon == model.config.rms_norm_eps
    assert model.config.quantization_config["quantization_mode"] == "online"
    assert type(model.lm_head) is nn.Linear


def test_a_model_that_has_norms_already_gets_its_layers_only() -> None:
    model = tiny_model(SMALL, architecture="bitnet")
    names = list(model.state_dict())
    replace_projections(model)
    assert list(model.state_dict()) == names
    assert sum(isinstance(module, BitLinear) for module in model.modules()) == 7 * SMALL.layers


def test_other_architectures() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    mistral = MistralForCausalLM(MistralConfig(vocab_size=64, num_key_value_heads=2, **sizes))
    with pytest.raises(
        UnsupportedError, match=r"^MistralForCausalLM cannot.*expected LlamaForCausalLM, Qwen2"
    ):
        make_student(mistral)
    with pytest.raises(UnsupportedError, match=r"^BitNetForCausalLM cannot"):
        make_student(tiny_model(SMALL))


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("config", "message"),
    [({"hidden_act": "gelu"}, "hidden_act 'gelu'"), ({"rope_parameters": YARN}, "'yarn'")],
)
def test_what_could_not_be_converted_is_refused_before_training(config: Any, message: str) -> None:
    model = float_model(**config)
    with pytest.raises(UnsupportedError, match=re.escape(message)):
        make_student(model)
    assert not any(isinstance(module, BitLinear) for module in model.modules())


def test_no_second_surgery() -> None:
    student = make_student(float_model())
    with pytest.raises(UsageError, match="already has SubLN"):
        make_student(student)
    with pytest.raises(UnsupportedError, match=r"layers\.0\.self_attn\.q_proj is BitLinear"):
        replace_projections(student)


def test_a_missing_projection() -> None:
    model = float_model()
    model.model.layers[1].mlp.up_proj = nn.Identity()
    with pytest.raises(UnsupportedError, match=r"model\.layers\.1\.mlp\.up_proj is Identity; expected"):
        make_student(model)
    assert not any(isinstance(module, BitLinear) for module in model.modules())
