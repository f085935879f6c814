"""Settings of the objective that do not fit the two models are rejected before the first step."""

from __future__ import annotations

from typing import Any

from bitexport.checkpoint.block_diffusion import KEY
from bitexport.errors import UsageError
from bitexport.train.config import TrainConfig


def check_settings(config: TrainConfig, student: Any, teacher: Any) -> None:
    """Raise UsageError if ``config`` asks for a term that cannot compare ``student`` and ``teacher``."""
    if config.logits_weight:
        student_size = shared_vocabulary(student.config, teacher.config)
        check_vocabularies(student_size, teacher.config.vocab_size, config.logit_projector)
    _check_hidden_sizes(config, student.config.hidden_size, teacher.config.hidden_size)
    _check_combinations(config, teacher.config.vocab_size)


def shared_vocabulary(student: Any, teacher: Any) -> int:
    """How many of the student's tokens the teacher may have: all, or all but a mask token that was added."""
    size = int(student.vocab_size)
    diffusion = getattr(student, KEY, None) or {}
    is_added = diffusion.get("mask_token_id") == size - 1 == teacher.vocab_size
    return size - 1 if is_added else size


def check_vocabularies(student_size: int, teacher_size: int, projector: bool) -> None:
    """Raise UsageError if logits cannot be compared: vocabularies of different size and no projector."""
    if student_size != teacher_size and not projector:
        found = f"the student's vocabulary has {student_size:,} tokens, the teacher's {teacher_size:,}"
        remedy = "choose another teacher, or set logit_projector = true or logits_weight = 0"
        raise UsageError(f"{found}; logits distillation needs the same: {remedy}")


def check_relation_layer(layer: int, teacher_layers: int) -> None:
    """Raise UsageError if the teacher has no layer with this number."""
    if layer >= teacher_layers:
        raise UsageError(f"config: relation_layer = {layer}; expected 0 to {teacher_layers - 1}")


def check_relation_heads(relation_heads: int, projections: list[Any]) -> None:
    """Raise UsageError if a projection (q, k or v of either model) cannot be cut into ``relation_heads``."""
    widths = sorted({projection.out_features for projection in projections})
    if any(width % relation_heads for width in widths):
        raise UsageError(
            f"config: relation_heads = {relation_heads}; expected a divisor of the widths of "
            f"queries, keys and values, {', '.join(map(str, widths))}"
        )


def _check_hidden_sizes(config: TrainConfig, student_size: int, teacher_size: int) -> None:
    if student_size == teacher_size:
        return
    found = f"hidden sizes of {student_size} (student) and {teacher_size} (teacher)"
    if config.feature_weight and not config.router:
        raise UsageError(f"config: feature_weight with {found}: set router = true, or feature_weight = 0")
    if config.contrastive_weight:
        raise UsageError(f"config: contrastive_weight with {found}: set contrastive_weight = 0")


def _check_combinations(config: TrainConfig, teacher_vocabulary: int) -> None:
    if config.router and not config.feature_weight:
        raise UsageError("config: router without feature_weight: set feature_weight, too, or router = false")
    if config.logit_projector and not config.logits_weight:
        remedy = "set logits_weight, too, or logit_projector = false"
        raise UsageError(f"config: logit_projector without logits_weight: {remedy}")
    if config.logits_top_k > teacher_vocabulary:
        raise UsageError(
            f"config: logits_top_k = {config.logits_top_k}; expected at most the teacher's vocabulary of "
            f"{teacher_vocabulary}: lower it"
        )
    if config.chunk_tokens and config.logits_weight and not config.logits_top_k:
        raise UsageError("config: chunk_tokens with logits_weight needs logits_top_k: set it, too")
