"""Is this checkpoint sound? Signs of damage and of failed training, each under a stable name."""

from __future__ import annotations

from bitexport.health.sidecars import check_trainer_state, check_vocabulary
from bitexport.health.signs import SIGNS, Finding, SignKind, refuse
from bitexport.health.tensors import Health

__all__ = ["SIGNS", "Finding", "Health", "SignKind", "check_trainer_state", "check_vocabulary", "refuse"]
