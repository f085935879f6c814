"""The chunked losses against the full ones: same values, same gradients, and never logits of all tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bitexport.errors import UsageError
from bitexport.train.objective.chunked import chunked_next_token, chunked_top_k, chunked_top_k_distillation
from bitexport.train.objective.losses import next_token, top_k_logits_distillation

B, T, V, D, K = 3, 9, 37, 6, 5
SHAPES = [(1, 1), (1, 7), (3, 9), (4, 2)]
Loss = Callable[[Tensor, Tensor], Tensor]


def inputs(dtype: torch.dtype, B: int = B, T: int = T) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, a head, and labels; no label of the second row is counted."""
    torch.manual_seed(0)
    hidden = torch.randn(B, T, D, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, D, dtype=dtype, requires_grad=True)
    labels = torch.randint(V, (B, T))
    labels[torch.rand(B, T) < 0.3] = -100
    labels[0, -1] = 3
    labels[1:2] = -100
    return hidden, weight, labels


def forms(name: str, labels: Tensor, chunk: int, dtype: torch.dtype) -> tuple[Loss, Loss]:
    """The full and the chunked form as functions of hidden states and head weight."""
    if name == "next_token":
        return (
            lambda hidden, weight: next_token(hidden @ weight.T, labels),
            lambda hidden, weight: chunked_next_token(hidden, weight, labels, chunk),
        )
    teacher = torch.randn(*labels.shape, V, generator=torch.manual_seed(1)).to(dtype).topk(K)
    tau: dict[str, Any] = {"tau": 2.0, "tau_squared": True}
    return (
        lambda hidden, weight: top_k_logits_distillation(hidden @ weight.T, *teacher, labels, **tau),
        lambda hidden, weight: chunked_top_k_distillation(hidden, weight, *teacher, labels, chunk, **tau),
    )


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.size = max(self.size, tensor.numel())
        return result


NAMES = pytest.mark.parametrize("name", ["next_token", "top_k_distillation"])


@NAMES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_those_of_the_full_form(
    name: str, dtype: torch.dtype, chunk: int, shape: tuple[int, int]
) -> None:
    hidden, weight, labels = inputs(dtype, *shape)
    whole, chunked = (form(hidden, weight) for form in forms(name, labels, chunk, dtype))
    assert chunked.dtype == dtype
    near = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(chunked, whole, **near)
    # The factor 3 is the term's weight in a total.
    expected = torch.autograd.grad(3 * whole, (hidden, weight))
    torch.testing.assert_close(torch.autograd.grad(3 * chunked, (hidden, weight)), expected, **near)


@NAMES
def test_gradient_by_finite_differences(name: str) -> None:
    hidden, weight, labels = inputs(torch.float64, 3, 4)
    _, chunked = forms(name, labels, 2, torch.float64)
    assert torch.autograd.gradcheck(chunked, (hidden, weight))


@NAMES
def test_under_autocast_the_head_is_bfloat16_and_gradients_are_float32(name: str) -> None:
    hidden, weight, labels = inputs(torch.float32)
    exact, _ = forms(name, labels, 4, torch.float32)
    best = torch.autograd.grad(exact(hidden, weight), (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        whole, chunked = (form(hidden, weight) for form in forms(name, labels, 4, torch.float32))
    assert chunked.dtype == torch.float32
    assert whole.item() != exact(hidden, weight).item()
    assert chunked.item() == pytest.approx(whole.item(), rel=1e-5)
    results = torch.autograd.grad(chunked, (hidden, weight)), torch.autograd.grad(whole, (hidden, weight))
    for chunked_gradient, whole_gradient, exact_gradient in zip(*results, best, strict=True):
        assert chunked_gradient.dtype == torch.float32
        chunked_error = (chunked_gradient - exact_gradient).norm()
        whole_error = (whole_gradient - exact_gradient).norm()
        assert chunked_error <= 1.1 * whole_error < 0.02 * exact_gradient.norm()


@NAMES
def test_logits_of_all_tokens_never_exist(name: str) -> None:
    hidden, weight, labels = inputs(torch.float32, 4, 40)
    labels[:] = torch.randint(V, labels.shape)
    sizes = []
    for form in forms(name, labels, 4, torch.float32):
        with Largest() as seen:
            form(hidden, weight).backward()
        sizes.append(seen.size)
    everything = 4 * 39 * V
    assert sizes[0] >= everything
    assert sizes[1] <= max(hidden.numel(), 4 * K * D, 4 * V, V * D) < everything / 5


@NAMES
def test_positions_that_are_not_counted_are_not_computed(name: str) -> None:
    """Their content may be NaN; the gradient there is exactly zero."""
    hidden, weight, labels = inputs(torch.float32)
    _, chunked = forms(name, labels, 4, torch.float32)
    unread = torch.cat([labels[:, 1:] == -100, torch.ones(B, 1, dtype=torch.bool)], dim=1)[..., None]
    spoiled = hidden.detach().masked_fill(unread, float("nan")).requires_grad_()
    assert chunked(spoiled, weight).item() == chunked(hidden, weight).item()
    (gradient,) = torch.autograd.grad(chunked(spoiled, weight), spoiled)
    assert not gradient[unread.expand_as(gradient)].any()
    assert gradient.any()


@NAMES
def test_nothing_counted_gives_zero_and_a_zero_gradient(name: str) -> None:
    hidden, weight, labels = inputs(torch.float32)
    _, chunked = forms(name, torch.full_like(labels, -100), 4, torch.float32)
    value = chunked(hidden, weight)
    assert value.item() == 0.0
    assert not any(gradient.any() for gradient in torch.autograd.grad(value, (hidden, weight)))


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_top_k_equals_that_of_torch(chunk: int) -> None:
    hidden, weight, _ = inputs(torch.float64)
    values, indices = chunked_top_k(hidden, weight, K, chunk)
    expected = (hidden @ weight.T).topk(K)
    torch.testing.assert_close(values, expected.values.detach())
    assert torch.equal(indices, expected.indices)
    assert not values.requires_grad
    keep = torch.ones(B, T) > 0
    _, kept_indices = chunked_top_k(hidden[keep], weight, K, chunk)
    assert torch.equal(kept_indices, indices[keep])


def test_top_k_holds_one_chunk_of_logits() -> None:
    hidden, weight, _ = inputs(torch.float32, 4, 40)
    with Largest() as seen:
        chunked_top_k(hidden, weight, K, 4)
    assert seen.size <= max(hidden.numel(), 4 * V)


def test_more_than_the_vocabulary_is_a_usage_error() -> None:
    hidden, weight, _ = inputs(torch.float32)
    with pytest.raises(UsageError, match="top-k is 38, but the vocabulary has 37 entries"):
        chunked_top_k(hidden, weight, V + 1, 4)
