"""Logits distillation between vocabularies of unequal size."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F

from bitexport.errors import BitexportWarning, UsageError


class LogitProjector(torch.nn.Module):
    """From the student's last hidden state, [..., D], to logits over the teacher's vocabulary, [..., V_t].

    Not from its logits: V_s x V_t is 7.5 billion entries for SmolLM2 under Qwen, D x V_t is 88 million. So
    the student's own head learns from the other terms alone. Both must split a text alike (a vocabulary that
    was padded, cut or added to): position is compared with position.

    Answers in ``dtype``, the teacher's, whatever comes in, under autocast too. What the optimizer moves stays
    float32: AdamW at 5e-5 moved not one bfloat16 entry, and made NaN of float16, where its epsilon is 0.
    """

    def __init__(self, hidden_size: int, teacher_vocabulary: int, dtype: torch.dtype) -> None:
        super().__init__()
        if dtype == torch.float16:  # measured: 16,384 tokens, 1,024 positions: 74% zeros; none in bfloat16
            why = "the teacher is float16, in which most of the gradient of its logits may be 0"
            warnings.warn(f"{why}; load the teacher in bfloat16", BitexportWarning, stacklevel=2)
        self.dtype = dtype
        self.master = torch.nn.Parameter(torch.randn(teacher_vocabulary, hidden_size) * hidden_size**-0.5)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.to(self.dtype), self.master.to(self.dtype))


def check_vocabularies(student_size: int, teacher_size: int, projector: bool) -> None:
    """Raise UsageError when logits cannot be compared: unequal vocabularies and no projector."""
    if student_size != teacher_size and not projector:
        found = f"the student's vocabulary has {student_size:,} tokens, the teacher's {teacher_size:,}"
        remedy = "choose another teacher, or set logit_projector = true or logits_weight = 0"
        raise UsageError(f"{found}; logits distillation needs the same: {remedy}")
