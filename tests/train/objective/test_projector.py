from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bitexport.errors import BitexportWarning
from bitexport.train.objective.projector import LogitProjector

pytestmark = pytest.mark.filterwarnings("ignore:the teacher is float16")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_logits_have_the_teachers_dtype_in_every_mode(
    dtype: torch.dtype, training: bool, autocast: bool
) -> None:
    torch.manual_seed(0)
    projector = LogitProjector(8, 13, dtype).train(training)
    hidden = torch.randn(2, 3, 8, requires_grad=True)
    teacher = torch.randn(2, 3, 13, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = projector(hidden)
        assert logits.dtype == dtype
        assert logits.shape == teacher.shape
        loss = F.mse_loss(logits, teacher)
    loss.backward()
    exact = hidden.detach().double() @ projector.master.detach().double().T
    torch.testing.assert_close(logits.double(), exact, atol=8 * torch.finfo(dtype).eps * 4, rtol=0)
    assert hidden.grad is not None
    assert hidden.grad.abs().sum() > 0
    assert projector.master.grad is not None
    assert projector.master.grad.abs().sum() > 0


def test_logits_are_equal_with_and_without_autocast() -> None:
    """Training runs under autocast, evaluation does not: the same hidden state gives the same logits."""
    projector = LogitProjector(8, 13, torch.float16)
    hidden = torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = projector(hidden)
    assert torch.equal(inside, projector(hidden))


def test_a_float16_teacher_leaves_the_optimizer_finite() -> None:
    """For a token without gradient, AdamW in float16 would divide zero by zero."""
    projector = LogitProjector(8, 13, torch.float16)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=1e-2)
    before = projector.master.detach().clone()
    for _ in range(3):
        projector(torch.ones(2, 8))[:, :4].sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert projector.master.isfinite().all()
    assert (projector.master - before)[:4].abs().min() > 1e-3


def test_a_float16_teacher_gives_a_warning() -> None:
    with pytest.warns(BitexportWarning, match="load the teacher in bfloat16"):
        LogitProjector(8, 13, torch.float16)
