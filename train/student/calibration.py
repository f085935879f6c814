"""The gains of SubLN, set so that a student starts near its teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from bitexport.errors import UsageError
from bitexport.train.student.bitlinear import get_blend, set_blend


def calibrate(student: Any, batches: Sequence[Mapping[str, torch.Tensor]]) -> None:
    """Set each SubLN gain such that the float student (blend 0) starts near its teacher.

    SubLN scales to RMS 1 what the teacher never scaled. The gain restores the scale: it is the geometric
    mean, over tokens, of the RMS that the norm divides by. A root mean square over tokens would not work: in
    some layer of many models the first token is hundreds of times larger than all others, and would dominate.

    Measured with blend 0 and the norms bypassed, which is the teacher itself; so call it before any training.

    Args:
        batches: int64 ``input_ids`` and ``attention_mask`` ``[B, T]``; positions with mask 0 are ignored.

    Raises:
        UsageError: there is no token to measure.
    """
    norms = []
    for layer in student.model.layers:
        norms += [layer.self_attn.attn_sub_norm, layer.mlp.ffn_sub_norm]
    log_rms = _measure(student, norms, batches)
    if all(len(tokens) == 0 for tokens in log_rms[norms[0]]):
        raise UsageError("the calibration batches contain no token; give at least one that is not padding")
    for norm in norms:
        nn.init.constant_(norm.weight, float(torch.cat(log_rms[norm]).mean().exp()))


def _measure(
    student: Any, norms: list[nn.Module], batches: Sequence[Mapping[str, torch.Tensor]]
) -> dict[nn.Module, list[torch.Tensor]]:
    """The logarithm of the RMS of every token at the input of each norm, float64 ``[tokens]`` per batch."""
    log_rms: dict[nn.Module, list[torch.Tensor]] = {norm: [] for norm in norms}
    mask = torch.empty(0)  # of the batch in progress

    def measure_and_bypass(
        norm: nn.Module, inputs: tuple[torch.Tensor], _output: torch.Tensor
    ) -> torch.Tensor:
        states = inputs[0]  # [B, T, D]
        squares = states[mask.bool()].square().mean(dim=-1)  # [tokens]
        log_rms[norm].append((squares + student.config.rms_norm_eps).log().double() / 2)
        return states

    hooks = [norm.register_forward_hook(measure_and_bypass) for norm in norms]
    blend = get_blend(student)
    was_training = student.training
    set_blend(student.eval(), 0)
    try:
        with torch.no_grad():
            for batch in batches:
                input_ids = batch["input_ids"].to(student.device)
                mask = batch["attention_mask"].to(student.device)
                student(input_ids=input_ids, attention_mask=mask, use_cache=False)
    finally:
        set_blend(student.train(was_training), blend)
        for hook in hooks:
            hook.remove()
    return log_rms
