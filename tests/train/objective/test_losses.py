"""Every loss against the loops of slow_losses.py: values, gradients, and that padding does not matter."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from bitexport.errors import UsageError
from bitexport.train.objective import losses
from tests.support import slow_losses as slow

V, K, D, HEADS = 11, 4, 6, 3
STUDENT_WIDTHS, TEACHER_WIDTHS = (24, 12, 12), (12, 12, 6)  # 8 query heads of 3 and 4 of k and v; 4, 4 and 2
SHAPES = [(1, 1), (1, 7), (3, 1), (3, 7), (4, 2)]
TAU, TEMPERATURE = 2.5, 0.7


@dataclass
class Case:
    """A loss with its inputs. ``free``: positions whose content must not matter, [B, T] or [B, 1, T, T]."""

    fast: Callable[..., Tensor]
    slow: Callable[..., float]
    students: list[Tensor]
    teachers: list[Tensor]
    free: Tensor

    def value(self, students: list[Tensor] | None = None, teachers: list[Tensor] | None = None) -> Tensor:
        return self.fast(students or self.students, teachers or self.teachers)

    def expected(self, students: list[Tensor] | None = None) -> float:
        chosen = students or self.students
        return self.slow([s.tolist() for s in chosen], [t.tolist() for t in self.teachers])


def labels_and_mask(B: int, T: int) -> tuple[Tensor, Tensor]:
    """Answers, and padding on both sides; in the second row, if there is one, nothing is counted."""
    labels = torch.randint(V, (B, T))
    labels[torch.rand(B, T) < 0.4] = -100
    labels[0, -1] = 3  # something is counted wherever T > 1
    mask = torch.ones(B, T, dtype=torch.int64)
    mask[0, 5:] = 0
    if B > 1:
        labels[1], mask[1] = -100, 0
    if B > 2:
        mask[2, : T // 2] = 0
    return labels, mask


def make(name: str, B: int, T: int, nothing: bool = False) -> Case:
    torch.manual_seed(B * 100 + T)
    labels, mask = labels_and_mask(B, T)
    if nothing:
        labels, mask = torch.full_like(labels, -100), torch.zeros_like(mask)
    rows, padding = labels.tolist(), mask.tolist()
    unread = torch.ones(B, T, dtype=torch.bool)
    for b, t, _ in slow.predictions(rows):
        unread[b, t] = False

    def normal(*widths: int) -> list[Tensor]:
        return [torch.randn(B, T, width, dtype=torch.float64) * 2 for width in widths]

    def attention(heads: int) -> list[Tensor]:
        return [torch.randn(B, heads, T, T, dtype=torch.float64).tril().softmax(-1)]

    if name == "next_token":
        return Case(
            lambda s, _: losses.next_token(s[0], labels),
            lambda s, _: slow.next_token(s[0], rows),
            normal(V), [], unread,
        )  # fmt: skip
    if name == "logits":
        return Case(
            lambda s, t: losses.logits_distillation(s[0], t[0], labels, tau=TAU),
            lambda s, t: slow.logits_distillation(s[0], t[0], rows, TAU),
            normal(V), normal(V), unread,
        )  # fmt: skip
    if name == "top_k":
        return Case(
            lambda s, t: losses.top_k_logits_distillation(s[0], t[0], t[1].long(), labels, tau=TAU),
            lambda s, t: slow.top_k_logits_distillation(s[0], t[0], t[1], rows, TAU),
            normal(V), list(normal(V)[0].topk(K)), unread,
        )  # fmt: skip
    if name.startswith("relation"):
        _, form, heads = name.split("-")
        settings = {"relation_heads": int(heads), "temperature": TEMPERATURE, "form": form}
        return Case(
            lambda s, t: losses.relation_distillation(s, t, mask, **settings),
            lambda s, t: slow.relation_distillation(s, t, padding, int(heads), TEMPERATURE, form),
            normal(*STUDENT_WIDTHS), normal(*TEACHER_WIDTHS), mask == 0,
        )  # fmt: skip
    if name == "feature":
        return Case(
            lambda s, t: losses.feature_loss(s[0], t[0], mask),
            lambda s, t: slow.feature_loss(s[0], t[0], padding),
            normal(D), normal(D), mask == 0,
        )  # fmt: skip
    if name.startswith("attention"):
        pairs = mask.bool()[:, None, :, None] & mask.bool()[:, None, None, :]
        return Case(
            lambda s, t: losses.attention_loss(s[0], t[0], mask),
            lambda s, t: slow.attention_loss(s[0], t[0], padding),
            attention(HEADS), attention(int(name.split("-")[1])), ~pairs,
        )  # fmt: skip
    assert name == "contrastive"

    def pooled(states: list[Tensor]) -> Tensor:
        return losses.masked_mean(states[0], mask)

    def pooled_slowly(states: list[list[list[list[float]]]]) -> list[list[float]]:
        return slow.masked_mean(states[0], padding)

    return Case(
        lambda s, t: losses.contrastive_loss(pooled(s), pooled(t), 0.3),
        lambda s, t: slow.contrastive_loss(pooled_slowly(s), pooled_slowly(t), 0.3),
        normal(D), normal(D), mask == 0,
    )  # fmt: skip


RELATIONS = ["relation-cosine-3", "relation-scaled-6", "relation-cosine-1"]
TERMS = ["logits", "top_k", *RELATIONS, "feature", "attention-3"]
ALL = ["next_token", *TERMS, "attention-2", "contrastive"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_value_and_gradient_are_those_of_the_loops(name: str, shape: tuple[int, int]) -> None:
    """The gradient along a random direction against central differences of the loops."""
    case = make(name, *shape)
    students = [s.requires_grad_() for s in case.students]
    value = case.value(students)
    assert value.shape == ()
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(case.expected(), rel=1e-12, abs=1e-13)
    gradients = torch.autograd.grad(value, students)
    directions = [torch.randn_like(s) for s in students]
    step = 1e-5
    ahead, behind = (
        case.expected([s.detach() + sign * step * d for s, d in zip(students, directions, strict=True)])
        for sign in (1, -1)
    )
    along = sum((g * d).sum().item() for g, d in zip(gradients, directions, strict=True))
    assert along == pytest.approx((ahead - behind) / (2 * step), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_every_gradient_entry_by_finite_differences(name: str) -> None:
    case = make(name, 3, 3)
    students = [s.requires_grad_() for s in case.students]
    assert torch.autograd.gradcheck(lambda *s: case.value(list(s)), students)


@pytest.mark.parametrize("garbage", [1e4, float("nan"), float("-inf")], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_what_is_not_counted_changes_neither_value_nor_gradient(name: str, garbage: float) -> None:
    case = make(name, 3, 7)
    free = case.free if name.startswith("attention") else case.free[..., None]
    assert free.any()
    assert not free.all()

    def spoil(tensor: Tensor) -> Tensor:
        return tensor.masked_fill(free, garbage if tensor.is_floating_point() else 2**40)

    spoiled = [spoil(s).requires_grad_() for s in case.students]
    students = [s.requires_grad_() for s in case.students]
    value, after = case.value(students), case.value(spoiled, [spoil(t) for t in case.teachers])
    assert after.item() == value.item()
    gradients = torch.autograd.grad(value, students), torch.autograd.grad(after, spoiled)
    for clean, dirty in zip(*gradients, strict=True):
        assert torch.equal(clean, dirty)
        assert not dirty[free.expand_as(dirty)].any()
        assert dirty.any()


@pytest.mark.parametrize("name", ALL)
def test_nothing_counted_gives_zero_and_a_zero_gradient(name: str) -> None:
    case = make(name, 3, 7, nothing=True)
    students = [s.requires_grad_() for s in case.students]
    value = case.value(students)
    # All vectors are zero then: every teacher vector is equally near.
    assert value.item() == pytest.approx(math.log(3) if name == "contrastive" else 0.0)
    for gradient in torch.autograd.grad(value, students):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_is_computed_in_float32_under_autocast_too(name: str) -> None:
    case = make(name, 3, 7)

    def cast(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
        return [t.to(torch.bfloat16).to(dtype) if t.is_floating_point() else t for t in tensors]

    low, high = ((cast(case.students, d), cast(case.teachers, d)) for d in (torch.bfloat16, torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        values = [case.value(*low), case.value(*high)]
    expected = case.value(*high)
    exact = case.slow([s.tolist() for s in high[0]], [t.tolist() for t in high[1]])
    assert [value.dtype for value in values] == [torch.float32] * 2
    assert [value.item() for value in values] == [expected.item()] * 2
    assert expected.item() == pytest.approx(exact, rel=2e-5)


@pytest.mark.parametrize("name", TERMS)
def test_a_student_that_equals_its_teacher_has_loss_zero(name: str) -> None:
    case = make(name, 3, 7)
    teachers = list(case.students[0].topk(K)) if name == "top_k" else [s.clone() for s in case.students]
    students = [s.requires_grad_() for s in case.students]
    assert case.value(teachers=case.teachers).item() > 0.01
    value = case.value(students, teachers)
    assert value.item() == pytest.approx(0.0, abs=1e-15)
    for gradient in torch.autograd.grad(value, students):
        assert gradient.abs().max() < 1e-14


@pytest.mark.parametrize("name", ["logits", "top_k"])
def test_tau_squared_multiplies_by_tau_squared_and_is_off(name: str) -> None:
    case, (labels, _) = make(name, 3, 7), labels_and_mask(3, 7)
    term = losses.logits_distillation if name == "logits" else losses.top_k_logits_distillation
    tensors = (*case.students, *case.teachers, labels)
    plain = term(*tensors, tau=3.0).item()
    assert term(*tensors, tau=3.0, tau_squared=True).item() == pytest.approx(9 * plain, rel=1e-14)
    assert term(*tensors).item() == pytest.approx(term(*tensors, tau=5.0, tau_squared=False).item())


def test_top_k_over_the_whole_vocabulary_is_the_full_loss() -> None:
    torch.manual_seed(0)
    labels, _ = labels_and_mask(3, 7)
    student, teacher = torch.randn(2, 3, 7, V, dtype=torch.float64)
    student.requires_grad_()
    full = losses.logits_distillation(student, teacher, labels)
    top = losses.top_k_logits_distillation(student, *teacher.topk(V), labels)
    assert top.item() == pytest.approx(full.item(), rel=1e-14)
    assert torch.allclose(
        torch.autograd.grad(top, student)[0], torch.autograd.grad(full, student)[0], atol=1e-16
    )


def test_the_logits_of_a_position_are_compared_with_the_next_label() -> None:
    labels = torch.tensor([[-100, 4, -100, 9]])
    assert losses.counted(labels).tolist() == [[True, False, True, False]]
    assert losses.targets(labels).tolist() == [4, 9]
    sure = torch.zeros(1, 4, V)
    sure[0, 0, 4] = sure[0, 2, 9] = 100.0
    assert losses.next_token(sure, labels).item() == 0.0
    assert losses.next_token(torch.zeros(1, 4, V), labels).item() == pytest.approx(math.log(V))


def test_the_backward_pass_of_relations_keeps_only_the_projections() -> None:
    kept: list[int] = []
    states = [torch.randn(2, 16, 8, requires_grad=True) for _ in range(3)]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        losses.relation_distillation(states, states, torch.ones(2, 16), relation_heads=4).backward()
    assert max(kept, default=0) <= 2 * 16 * 8 < 2 * 4 * 16 * 16


def test_an_all_zero_projection_has_a_bounded_gradient() -> None:
    """A ternary layer returns zeros where all its activations round to zero."""
    student = torch.randn(1, 5, 8)
    student[0, 2] = 0
    student.requires_grad_()
    teacher = torch.randn(1, 5, 8)
    losses.relation_distillation([student] * 3, [teacher] * 3, torch.ones(1, 5), relation_heads=2).backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e4  # x / |x| without a bound: 1e12


def test_contrastive_loss_of_one_text_is_zero_and_of_a_permuted_batch_large() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(4, 32)
    assert losses.contrastive_loss(vectors[:1], vectors[1:2]).item() == 0.0
    assert losses.contrastive_loss(vectors, vectors).item() < 0.1
    assert losses.contrastive_loss(vectors, vectors.roll(1, 0)).item() > 5


def test_sizes_that_do_not_fit_are_usage_errors_that_name_them() -> None:
    mask, labels = torch.ones(1, 3), torch.zeros(1, 3, dtype=torch.int64)
    student, teacher = (
        [torch.zeros(1, 3, w) for w in (24, 12, 12)],
        [torch.zeros(1, 3, w) for w in (24, 10, 12)],
    )
    with pytest.raises(UsageError, match="teacher's k_proj has width 10, not divisible by 4 relation heads"):
        losses.relation_distillation(student, teacher, mask, relation_heads=4)
    with pytest.raises(UsageError, match="student's q_proj has width 24, not divisible by 5"):
        losses.relation_distillation(student, student, mask, relation_heads=5)
    with pytest.raises(UsageError, match='"dot" is unknown; choose "cosine" or "scaled"'):
        losses.relation_distillation(student, student, mask, relation_heads=4, form="dot")
    with pytest.raises(UsageError, match=r"vocabulary is 24, the teacher's 12; .*logit projector"):
        losses.logits_distillation(student[0], student[1], labels)
    with pytest.raises(UsageError, match="hidden size is 12, the teacher's 24"):
        losses.feature_loss(student[1], student[0], mask)
    with pytest.raises(UsageError, match="hidden size is 1, the teacher's 24"):
        losses.contrastive_loss(torch.zeros(2, 1), torch.zeros(2, 24))
