from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitexport.errors import UsageError
from bitexport.train.objective.losses import feature_loss
from bitexport.train.objective.router import FeatureLoss, StudentAwareRouter, describe_usage

PLANTED = [2, 5, 7]


def cosine(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return (1 - torch.cosine_similarity(student, teacher, dim=-1))[mask.bool()].mean()


def batch(
    generator: torch.Generator, widths: tuple[int, int] = (12, 12)
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Eight teacher layers, each larger than the last, and noisy copies of three as students."""
    teacher = [torch.randn(4, 6, widths[1], generator=generator) * 3.0**i for i in range(8)]
    mixed = (
        torch.randn(*widths[::-1], generator=torch.Generator().manual_seed(9))
        if widths[0] != widths[1]
        else None
    )
    student = []
    for layer in PLANTED:
        copy = teacher[layer] if mixed is None else teacher[layer] @ mixed
        student.append(copy + 0.3 * copy.std() * torch.randn(copy.shape, generator=generator))
    mask = torch.ones(4, 6)
    mask[0, 4:] = 0
    return student, teacher, mask


@pytest.mark.parametrize("loss", [cosine, feature_loss])
@pytest.mark.parametrize("widths", [(12, 12), (16, 12)])
def test_finds_a_planted_map_of_layers(widths: tuple[int, int], loss: FeatureLoss) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    router = StudentAwareRouter((3, 8), widths, loss)
    optimizer = torch.optim.AdamW(router.parameters(), lr=2e-2)
    uniform = router(*batch(generator, widths))
    torch.testing.assert_close(router.usage(), torch.full((3, 8), 1 / 8))
    for _ in range(300):
        optimizer.zero_grad()
        value = router(*batch(generator, widths))
        value.backward()
        optimizer.step()
    router.usage()
    router(*batch(generator, widths))
    usage = router.usage()
    assert usage.argmax(-1).tolist() == PLANTED
    assert usage.max(-1).values.min() > 0.7
    assert value < uniform / 3
    for i, layer in enumerate(PLANTED):
        assert f"{i}: {layer} (0." in describe_usage(usage) or f"{i}: {layer} (1." in describe_usage(usage)


def test_a_gate_follows_its_students_state() -> None:
    """Two kinds of batches, two planted layers: weights that ignore the state could not tell them apart."""
    torch.manual_seed(0)
    router = StudentAwareRouter((1, 4), (12, 12), loss=cosine)
    optimizer = torch.optim.AdamW(router.parameters(), lr=2e-2)
    sign = torch.zeros(12)
    sign[0] = 3.0

    def sample() -> tuple[list[Tensor], list[Tensor], Tensor]:
        kind = torch.randint(0, 2, (8,))
        teacher = [torch.randn(8, 5, 12) for _ in range(4)]
        rows = [teacher[1 + 2 * int(k)][b] + (2 * int(k) - 1) * sign for b, k in enumerate(kind)]
        return [torch.stack(rows)], teacher, torch.ones(8, 5)

    losses = []
    for _ in range(400):
        optimizer.zero_grad()
        loss = router(*sample())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # Without the state the best are the two layers half and half: the cosine of that is 0.7 of the right one.
    half = StudentAwareRouter((1, 4), (12, 12), loss=cosine)
    half.favours.data[0] = torch.tensor([-20.0, 0.0, -20.0, 0.0])
    blind = sum(half(*sample()).item() for _ in range(20)) / 20
    assert sum(losses[-20:]) / 20 < 0.75 * blind


def test_gradients_reach_student_and_router_only() -> None:
    student, teacher, mask = batch(torch.Generator().manual_seed(1))
    student = [state.requires_grad_() for state in student]
    teacher = [state.requires_grad_() for state in teacher]
    router = StudentAwareRouter((3, 8), (12, 12), loss=cosine)
    router(student, teacher, mask).backward()
    assert all(state.grad is None for state in teacher)
    for state in (*student, router.gates, router.favours):
        assert state.grad is not None
        assert state.grad.abs().sum() > 0


def test_equals_a_loop_and_padding_does_not_matter() -> None:
    torch.manual_seed(0)
    student, teacher, mask = batch(torch.Generator().manual_seed(1))
    router = StudentAwareRouter((3, 8), (12, 12), loss=cosine)
    torch.nn.init.normal_(router.gates)
    torch.nn.init.normal_(router.favours)
    router.requires_grad_(False)
    slow = 0.0
    for i in range(3):
        target = torch.zeros(4, 6, 12, dtype=torch.float64)
        for b in range(4):
            real = [student[i][b, t].double() for t in range(6) if mask[b, t]]
            pooled = torch.stack(real).mean(0)
            pooled = pooled / pooled.square().mean().sqrt()
            logits = [float(router.gates[i, j].double() @ pooled + router.favours[i, j]) for j in range(8)]
            weights = torch.tensor(logits, dtype=torch.float64).softmax(0)
            for j in range(8):
                for t in range(6):
                    state = teacher[j][b, t].double()
                    target[b, t] += weights[j] * state / state.square().mean().sqrt()
        slow += float(cosine(student[i].double(), target, mask)) / 3
    assert float(router(student, teacher, mask)) == pytest.approx(slow, abs=1e-5)
    for state in (*student, *teacher):
        state[0, 4:] = torch.nan
    assert float(router(student, teacher, mask)) == pytest.approx(slow, abs=1e-5)
    router.requires_grad_(True)
    router.loss = feature_loss  # selects before it computes
    router(student, teacher, mask).backward()
    assert router.gates.grad is not None
    assert router.gates.grad.isfinite().all()


def test_evaluation_does_not_count_as_use() -> None:
    router = StudentAwareRouter((3, 8), (12, 12), loss=cosine).eval()
    router(*batch(torch.Generator().manual_seed(1)))
    assert router.usage().sum() == 0


def test_works_in_low_precision_under_autocast() -> None:
    student, teacher, mask = batch(torch.Generator().manual_seed(1))
    router = StudentAwareRouter((3, 8), (12, 12), loss=cosine)
    exact = router(student, teacher, mask)
    with torch.autocast("cpu", torch.bfloat16):
        rough = router([s.bfloat16() for s in student], [t.bfloat16() for t in teacher], mask)
    assert float(rough) == pytest.approx(float(exact), abs=1e-2)


def test_another_number_of_layers_is_refused() -> None:
    student, teacher, mask = batch(torch.Generator().manual_seed(1))
    with pytest.raises(UsageError, match="made for 3 student and 8 teacher layers, not 2 and 8"):
        StudentAwareRouter((3, 8), (12, 12), loss=cosine)(student[:2], teacher, mask)


def test_a_gate_that_is_certain_keeps_its_gradient_finite() -> None:
    router = StudentAwareRouter((3, 8), (12, 12), loss=cosine)
    router.favours.data[:, 3] = 300.0
    router(*batch(torch.Generator().manual_seed(1))).backward()
    assert router.favours.grad is not None
    assert router.favours.grad.isfinite().all()
