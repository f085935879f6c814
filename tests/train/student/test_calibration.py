"""The gains of SubLN after calibration, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bitexport.errors import UsageError
from bitexport.train.student.bitlinear import BitLinear, set_blend
from bitexport.train.student.calibration import calibrate
from bitexport.train.student.surgery import make_student
from tests.train.student.test_surgery import FLOAT, batch, float_model, logits


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


def test_calibration_changes_nothing_but_the_gains() -> None:
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
        with pytest.raises(UsageError, match="contain no token"):
            calibrate(student, batches)
