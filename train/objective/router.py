"""Which teacher layers a student layer learns from: learned instead of configured. Off by default."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bitexport.errors import UsageError
from bitexport.train.objective.losses import feature_loss, masked_mean

FeatureLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


class StudentAwareRouter(torch.nn.Module):
    """One small gate per student layer: from its pooled state to weights over the teacher's layers.

    Where the widths differ, the student is projected to the teacher's width, never the other way round: a
    teacher behind a trained projection can be made easy to follow by mapping it to zero.

    Args:
        layers: numbers of layers of student and teacher, (L_s, L_t).
        widths: hidden sizes of student and teacher, (D_s, D_t).
        loss: ``loss(student [B, T, D], target [B, T, D], mask [B, T])``, a scalar.
    """

    used: Tensor  # [L_s, L_t], sums of the weights since the last call of usage()
    calls: Tensor  # forward passes in training since then

    def __init__(
        self, layers: tuple[int, int], widths: tuple[int, int], loss: FeatureLoss = feature_loss
    ) -> None:
        super().__init__()
        student_width, teacher_width = widths
        self.layers = layers
        self.loss = loss
        self.gates = torch.nn.Parameter(torch.zeros(*layers, student_width))
        self.favours = torch.nn.Parameter(torch.zeros(layers))  # independent of the state
        self.project: torch.nn.Linear | None = None
        if student_width != teacher_width:
            self.project = torch.nn.Linear(student_width, teacher_width, bias=False)
        self.register_buffer("used", torch.zeros(layers), persistent=False)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
        """The mean over student layers of the loss against each layer's mixture of teacher layers.

        Teacher layers are mixed at unit RMS, because the late ones are larger by orders of magnitude and
        would drown the others. Needs L_t x B x T x D_t floats.

        Args:
            student: L_s hidden states [B, T, D_s]; the loss trains them, the gates only read them.
            teacher: L_t hidden states [B, T, D_t]; they get no gradient.
            mask: [B, T], 0 at padding.

        Raises:
            UsageError: the numbers of layers are not those of the router.
        """
        if (len(student), len(teacher)) != self.layers:
            expected = f"{self.layers[0]} student and {self.layers[1]} teacher layers"
            raise UsageError(f"the router was made for {expected}, not {len(student)} and {len(teacher)}")
        padding = ~mask.bool().unsqueeze(-1)
        with torch.autocast(mask.device.type, enabled=False):
            teacher_states = [_unit_rms(state.detach()).masked_fill(padding, 0) for state in teacher]
            teacher_layers = torch.stack(teacher_states)  # [L_t, B, T, D_t]
            total = teacher_layers.new_zeros(())
            for i, state in enumerate(student):
                pooled = _unit_rms(masked_mean(state.detach(), mask))  # [B, D_s]
                weights = F.linear(pooled, self.gates[i], self.favours[i]).softmax(-1)  # [B, L_t]
                target = torch.einsum("bl,lbtd->btd", weights, teacher_layers)
                student_state = state.float() if self.project is None else self.project(state.float())
                total = total + self.loss(student_state, target, mask)
                if self.training:
                    self.used[i] += weights.mean(0).detach()
        if self.training:
            self.calls += 1
        return total / len(student)

    def usage(self) -> Tensor:
        """[L_s, L_t] on the CPU: mean weights in training since the last call; 0 if there was no step."""
        mean = (self.used / self.calls.clamp(min=1)).cpu()
        self.used.zero_()
        self.calls.zero_()
        return mean


def describe_usage(usage: Tensor) -> str:
    """The teacher layer with the largest weight, per student layer: ``"0: 2 (0.91), 1: 5 (0.88)"``."""
    return ", ".join(f"{i}: {int(row.argmax())} ({row.max():.2f})" for i, row in enumerate(usage))


def _unit_rms(states: Tensor) -> Tensor:
    return F.rms_norm(states.float(), states.shape[-1:], eps=1e-6)
