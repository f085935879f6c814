"""Logits distillation between vocabularies of unequal size."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F

from bitexport.errors import BitexportWarning, UsageError


class LogitProjector(torch.nn.Module):
    """From the student's last hidden state, [..., D], to logits over the teacher's vocabulary, [..., V_t].

    Not from the student's logits: that matrix has V_s x V_t entries, 49,152 x 151,936 = 7.5 billion for
    SmolLM2 under Qwen (30 GB in float32, 120 GB with gradients and AdamW's moments); D x V_t with D = 576 has
    88 million (0.35 GB, 1.4 GB). The price: the student's own head learns from the other terms alone.

    Logits of one position are compared with the teacher's of the same position: teacher and student must
    split a text alike (a vocabulary that was padded, cut or added to). Training uses it, nothing saves it.

    Computes and answers in ``dtype``, the teacher's, whatever comes in, with autocast and without it. What
    the optimizer moves stays float32: of a bfloat16 matrix AdamW at a rate of 5e-5 moved not one entry, and
    of a float16 one it made NaN, since its epsilon of 1e-8 is 0 there.
    """

    def __init__(self, hidden_size: int, teacher_vocabulary: int, dtype: torch.dtype) -> None:
        super().__init__()
        if dtype == torch.float16:  # measured: 16,384 tokens, 1,024 positions: 74% zeros; none in bfloat16
            why = (
                "the teacher is float16: most of the gradient of its logits may be too small for that, and 0"
            )
            what = "scale the loss (fp16 = true), or load the teacher in bfloat16"
            warnings.warn(f"{why}; {what}", BitexportWarning, stacklevel=2)
        self.dtype = dtype
        self.master = torch.nn.Parameter(torch.randn(teacher_vocabulary, hidden_size) * hidden_size**-0.5)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.to(self.dtype), self.master.to(self.dtype))


def check_vocabularies(student_size: int, teacher_size: int, projector: bool) -> None:
    """Raise UsageError when logits cannot be compared: unequal vocabularies and no projector."""
    if student_size != teacher_size and not projector:
        raise UsageError(
            f"the student's vocabulary has {student_size:,} tokens, the teacher's {teacher_size:,}; logits "
            "distillation needs the same: choose another teacher, set logit_projector = true, or logits = 0"
        )
