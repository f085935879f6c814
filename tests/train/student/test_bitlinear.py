"""BitLinear against transformers' AutoBitLinear, to the last bit, and against formulas written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.integrations.bitnet import ActQuant, AutoBitLinear, WeightQuant

from bitexport.train.student.bitlinear import (
    BitLinear,
    get_blend,
    hold_quantized,
    quantize_activation,
    quantize_weight,
    release_quantized,
    set_blend,
)


def activations(seed: int = 0) -> torch.Tensor:
    """Tokens of very different size, float32 [5, 7, 96]: zeros, below the clamp, huge, exact halves."""
    x = torch.randn(5, 7, 96, generator=torch.manual_seed(seed))
    x *= torch.logspace(-6, 6, 35).reshape(5, 7, 1)
    x[0, 0] = 0
    x[0, 1] *= 1e-20
    x[1, 2] = torch.arange(96) % 255 - 127.5
    x[2, 3] = torch.linspace(-127, 127, 96).round() / 2
    return x


def outputs_and_gradients(
    layer: nn.Linear, x: torch.Tensor, *, autocast: bool = False
) -> dict[str, torch.Tensor | None]:
    x = x.clone().requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(x)
    y.backward(torch.randn(y.shape, generator=torch.manual_seed(9)).to(y.dtype))
    bias = None if layer.bias is None else layer.bias.grad
    return {"output": y.detach(), "x": x.grad, "weight": layer.weight.grad, "bias": bias}


def same(first: dict[str, torch.Tensor | None], second: dict[str, torch.Tensor | None]) -> None:
    for name, value in first.items():
        other = second[name]
        if value is None or other is None:
            assert value is other, name
        else:
            assert value.dtype == other.dtype, name
            assert torch.equal(value, other), name


@pytest.mark.parametrize("standard_deviation", [1e-7, 0.02, 3.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_layer_equals_that_of_transformers(standard_deviation: float, bias: bool, autocast: bool) -> None:
    torch.manual_seed(1)
    expected = AutoBitLinear(96, 64, bias=bias, online_quant=True)
    nn.init.normal_(expected.weight, std=standard_deviation)
    layer = BitLinear(96, 64, bias=bias)
    layer.load_state_dict(expected.state_dict())
    x = activations()
    same(
        outputs_and_gradients(expected, x, autocast=autocast),
        outputs_and_gradients(layer, x, autocast=autocast),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_quantizers_equal_those_of_transformers_in_every_dtype(dtype: torch.dtype) -> None:
    for seed in range(20):
        x = activations(seed).clamp(-6e4, 6e4).to(dtype)  # what float16 can hold
        assert torch.equal(quantize_activation(x), ActQuant.apply(x))
        weight = torch.randn(64, 96, generator=torch.manual_seed(seed)).to(dtype)
        assert torch.equal(quantize_weight(weight), WeightQuant.apply(weight))


def test_quantizing_does_not_change_its_input() -> None:
    """They work in place on a copy, even if the input is float32 already and float() returns it."""
    x, weight = activations(), torch.randn(64, 96)
    before = x.clone(), weight.clone()
    for blend in (0.3, 1.0):
        quantize_activation(x, blend)
        quantize_weight(weight, blend)
    assert torch.equal(x, before[0])
    assert torch.equal(weight, before[1])


def test_nothing_is_kept_for_the_backward_pass() -> None:
    for quantized in (
        quantize_activation(activations().requires_grad_()),
        quantize_weight(torch.randn(64, 96, requires_grad=True)),
    ):
        assert quantized.grad_fn is not None
        assert quantized.grad_fn.saved_tensors == ()  # type: ignore[attr-defined]


def test_a_diverged_activation_is_not_hidden() -> None:
    x = torch.tensor([[1.0, float("nan")], [1.0, 2.0]])
    assert quantize_activation(x).isnan().tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("blend", [0.1, 0.5, 0.9])
def test_a_blend_is_the_formula(blend: float) -> None:
    torch.manual_seed(2)
    layer, x = BitLinear(96, 64), activations()
    set_blend(layer, blend)

    def formula(value: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
        return value + (blend * (quantized - value)).detach()

    class Written(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = formula(self.weight, WeightQuant.apply(self.weight.detach()))
            return nn.functional.linear(formula(x, ActQuant.apply(x.detach())), weight, self.bias)

    written = Written(96, 64)
    written.load_state_dict(layer.state_dict())
    same(outputs_and_gradients(written, x), outputs_and_gradients(layer, x))


@pytest.mark.parametrize("autocast", [False, True])
def test_blend_0_is_a_float_layer(autocast: bool) -> None:
    torch.manual_seed(3)
    layer, plain = BitLinear(96, 64), nn.Linear(96, 64)
    plain.load_state_dict(layer.state_dict())
    set_blend(layer, 0)
    same(
        outputs_and_gradients(plain, activations(), autocast=autocast),
        outputs_and_gradients(layer, activations(), autocast=autocast),
    )


def test_the_blend_of_a_model() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(BitLinear(4, 4)), BitLinear(4, 4))
    assert get_blend(model) == 1.0
    set_blend(model, 0.25)
    assert [layer.blend for layer in model.modules() if isinstance(layer, BitLinear)] == [0.25, 0.25]
    assert get_blend(model) == 0.25
    assert get_blend(model[0]) == 0
    assert not any("blend" in name for name in model.state_dict())


@pytest.mark.parametrize("blend", [0.5, 1.0])
def test_it_compiles_without_a_graph_break(blend: float) -> None:
    torch.manual_seed(4)
    layer, x = BitLinear(96, 64), activations()
    set_blend(layer, blend)
    expected = outputs_and_gradients(layer, x)
    with torch.compiler.set_stance("default"):
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        y = compiled(x.clone().requires_grad_())
        layer.zero_grad()
        y.backward(torch.randn(y.shape, generator=torch.manual_seed(9)))
    assert torch.equal(y.detach(), expected["output"])
    assert torch.equal(layer.weight.grad, expected["weight"])


@pytest.mark.parametrize("blend", [0.3, 1.0])
@pytest.mark.parametrize("autocast", [False, True])
def test_held_weights_give_the_same_bits(blend: float, autocast: bool) -> None:
    """Quantized once for two forward passes, or in each of them: outputs and gradients."""
    torch.manual_seed(1)
    layer = BitLinear(48, 24)
    x = torch.randn(2, 5, 48)
    found = []
    for held in (False, True):
        layer.zero_grad()
        set_blend(layer, blend)
        if held:
            hold_quantized(layer, torch.bfloat16 if autocast else None)
        outputs = []
        for part in x:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                outputs.append(layer(part))
            outputs[-1].float().square().sum().backward()
        release_quantized(layer)
        assert layer.held is None
        assert layer.weight.grad is not None
        found.append((torch.stack(outputs), layer.weight.grad.clone()))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_nothing_is_held_without_quantization() -> None:
    layer = BitLinear(8, 8)
    set_blend(layer, 0)
    hold_quantized(layer)
    assert layer.held is None


def test_a_blend_between_is_a_tensor_with_the_same_result() -> None:
    layer = BitLinear(16, 8)
    x = torch.randn(3, 16)
    set_blend(layer, 0.37)
    assert isinstance(layer.blend, torch.Tensor)
    assert get_blend(layer) == pytest.approx(0.37)
    weight = quantize_weight(layer.weight, 0.37)
    expected = torch.nn.functional.linear(quantize_activation(x, 0.37), weight, layer.bias)
    assert torch.equal(layer(x), expected)
