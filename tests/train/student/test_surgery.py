"""The surgery: what it changes and leaves, and that the student is the one of transformers' own layers."""

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
from bitexport.train.student.bitlinear import BitLinear, set_blend
from bitexport.train.student.pack import FLOAT_HEAD
from bitexport.train.student.surgery import calibrate, make_student, replace_projections
from tests.support.models import MODEL_CLASSES, Shape, tiny_model

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
def test_the_student_is_the_one_of_transformers_layers(architecture: str, tied: bool) -> None:
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
    with pytest.raises(UsageError, match="has SubLN already"):
        make_student(student)
    with pytest.raises(UnsupportedError, match=r"layers\.0\.self_attn\.q_proj is BitLinear"):
        replace_projections(student)


def test_a_missing_projection() -> None:
    model = float_model()
    model.model.layers[1].mlp.up_proj = nn.Identity()
    with pytest.raises(UnsupportedError, match=r"model\.layers\.1\.mlp\.up_proj is Identity; expected"):
        make_student(model)
    assert not any(isinstance(module, BitLinear) for module in model.modules())


def divergence(teacher: torch.Tensor, student: torch.Tensor) -> float:
    """KL(teacher || student), mean over positions, in nats."""
    p, q = teacher.log_softmax(-1), student.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("architecture", FLOAT)
def test_calibration_brings_the_float_student_near_its_teacher(architecture: str) -> None:
    # weights of 0.02, as initialized: what enters o_proj and down_proj is far from RMS 1
    model = float_model(architecture)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_proj.weight" in name:
                parameter.mul_(2)
    inputs, other = batch(), batch(1)
    expected = logits(model, other)
    student = make_student(model)
    set_blend(student, 0)
    before = divergence(expected, logits(student, other))
    calibrate(student, [inputs])
    after = divergence(expected, logits(student, other))
    assert before > 0.02
    assert after < before / 4


def gains(model: Any) -> list[float]:
    weights = [value for name, value in model.state_dict().items() if "sub_norm" in name]
    assert all(bool((weight == weight[0]).all()) for weight in weights)
    return [float(weight[0]) for weight in weights]


def test_the_gain_is_the_geometric_mean_of_the_tokens() -> None:
    teacher = float_model()
    seen: list[torch.Tensor] = []
    for layer in teacher.model.layers:
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    logits(teacher, batch())
    expected = [
        float((values.square().mean(-1) + teacher.config.rms_norm_eps).sqrt().log().mean().exp())
        for values in seen
    ]
    student = make_student(float_model())
    calibrate(student, [{key: value[:1] for key, value in batch().items()},
                        {key: value[1:] for key, value in batch().items()}])  # fmt: skip
    assert gains(student) == pytest.approx(expected, rel=1e-5)


def test_calibration_is_deterministic_and_ignores_padding() -> None:
    inputs = batch(size=2, length=12)
    padded = {key: nn.functional.pad(value, (0, 5), value=0) for key, value in inputs.items()}
    found = []
    for given in (inputs, inputs, padded):
        student = make_student(float_model())
        calibrate(student, [given])
        found.append(gains(student))
    assert found[0] == found[1]
    assert found[2] == pytest.approx(found[0], rel=1e-5)


def test_calibration_leaves_no_trace_but_the_gains() -> None:
    student = make_student(float_model()).train()
    set_blend(student, 0.5)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    calibrate(student, [batch()])
    first = gains(student)
    calibrate(student, [batch()])  # bypasses norms that are no longer ones
    assert gains(student) == first
    assert student.training
    assert all(module.blend == 0.5 for module in student.modules() if isinstance(module, BitLinear))
    assert not any(module._forward_hooks for module in student.modules())
    after = student.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if "sub_norm" not in name)


def test_nothing_to_calibrate_with() -> None:
    student = make_student(float_model())
    empty = batch() | {"attention_mask": torch.zeros(4, 20, dtype=torch.int64)}
    for batches in ([], [empty]):
        with pytest.raises(UsageError, match="hold no token"):
            calibrate(student, batches)
