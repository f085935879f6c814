"""Which teacher layers a student layer learns from, learned instead of given. An option, off by default."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bitexport.errors import UsageError
from bitexport.train.objective.losses import feature_loss, masked_mean

FeatureLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


class StudentAwareRouter(torch.nn.Module):
    """One small gate for each student layer: its pooled state -> weights over the teacher's layers.

    Where the widths differ the student is projected to the teacher's, never the other way round: a teacher
    that is projected by what is being trained can be made easy to follow by mapping it to nothing.

    Args:
        layers, widths: of student and teacher, (L_s, L_t) and (D_s, D_t).
        loss: ``loss(student [B, T, D], target [B, T, D], mask [B, T])``, a scalar.
    """

    used: Tensor
    calls: Tensor

    def __init__(
        self, layers: tuple[int, int], widths: tuple[int, int], loss: FeatureLoss = feature_loss
    ) -> None:
        super().__init__()
        self.gates = torch.nn.Parameter(torch.zeros(*layers, widths[0]))
        self.favours = torch.nn.Parameter(torch.zeros(layers))  # whatever the state is
        self.project = None if widths[0] == widths[1] else torch.nn.Linear(*widths, bias=False)
        self.layers, self.loss = layers, loss
        self.register_buffer("used", torch.zeros(layers), persistent=False)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
        """The mean over student layers of the loss against each one's own mixture of teacher layers.

        Teacher layers are mixed at unit RMS, so that the late ones, larger by orders of magnitude, do not
        drown the others; this holds L_t x B x T x D_t floats.

        ``student``: L_s hidden states [B, T, D_s]; the loss moves them, the gates only look at them.
        ``teacher``: L_t of [B, T, D_t], which get no gradient. ``mask``: [B, T], 0 for padding.
        """
        if (found := (len(student), len(teacher))) != self.layers:
            made = f"{self.layers[0]} student and {self.layers[1]} teacher layers"
            raise UsageError(f"the router was made for {made}, not {found[0]} and {found[1]}")
        padding = ~mask.bool().unsqueeze(-1)
        with torch.autocast(mask.device.type, enabled=False):
            layers = torch.stack([_unit(state.detach()).masked_fill(padding, 0) for state in teacher])
            total = layers.new_zeros(())
            for i, state in enumerate(student):
                pooled = _unit(masked_mean(state.detach(), mask))
                weights = F.linear(pooled, self.gates[i], self.favours[i]).softmax(-1)  # [B, L_t]
                ours = state.float() if self.project is None else self.project(state.float())
                total = total + self.loss(ours, torch.einsum("bl,lbtd->btd", weights, layers), mask)
                if self.training:
                    self.used[i] += weights.mean(0).detach()
        self.calls += self.training
        return total / len(student)

    def usage(self) -> Tensor:
        """[L_s, L_t] on the CPU: mean weights in training since the last call; 0 if there was no step."""
        mean = (self.used / self.calls.clamp(min=1)).cpu()
        self.used.zero_(), self.calls.zero_()
        return mean


def describe(usage: Tensor) -> str:
    """For a log line: each student layer's favourite teacher layer, ``"0: 2 (0.91), 1: 5 (0.88)"``."""
    return ", ".join(f"{i}: {int(row.argmax())} ({row.max():.2f})" for i, row in enumerate(usage))


def _unit(states: Tensor) -> Tensor:
    return F.rms_norm(states.float(), states.shape[-1:], eps=1e-6)
