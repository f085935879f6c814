"""Logits distillation between vocabularies of unequal size."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bitexport.errors import UsageError


class LogitProjector(torch.nn.Module):
    """From the student's last hidden state, [..., D], to logits over the teacher's vocabulary, [..., V_t].

    Not from the student's logits: that matrix has V_s x V_t entries, 49,152 x 151,936 = 7.5 billion for
    SmolLM2 under Qwen (30 GB in float32, 120 GB with gradients and AdamW's moments); D x V_t with D = 576 has
    88 million (0.35 GB, 1.4 GB). The price: the student's own head learns from the other terms alone.

    Logits of one position are compared with the teacher's of the same position: teacher and student must
    split a text alike (a vocabulary that was padded, cut or added to). Training uses it, nothing saves it.

    Computes and answers in ``dtype``, the teacher's, whatever comes in, with autocast and without it. What
    the optimizer moves stays float32: in float16, AdamW's epsilon is zero and its first step divides by it.
    The gradient of an answer in float16 is float16 too: without loss scaling much of it is below 6e-8, which
    is none. Load such a teacher in bfloat16 where the machine can.
    """

    def __init__(self, hidden_size: int, teacher_vocabulary: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.master = torch.nn.Parameter(torch.randn(teacher_vocabulary, hidden_size) * hidden_size**-0.5)

    @property
    def weight(self) -> torch.Tensor:
        """[V_t, D] in the teacher's dtype."""
        return self.master.to(self.dtype)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.to(self.dtype), self.weight)


def check_vocabularies(student_size: int, teacher_size: int, projector: bool) -> None:
    """Raise UsageError when logits cannot be compared: unequal vocabularies and no projector."""
    if student_size != teacher_size and not projector:
        raise UsageError(
            f"the student's vocabulary has {student_size:,} tokens, the teacher's {teacher_size:,}; logits "
            "distillation needs the same: choose another teacher, set logit_projector = true, or logits = 0"
        )
