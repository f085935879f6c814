"""Is this checkpoint sound? Signs of damage and of training that went wrong, each under a stable name."""

from __future__ import annotations

from bitexport.health.sidecars import look_at_trainer_state, look_at_vocabulary
from bitexport.health.signs import SIGNS, Finding, SignKind, refuse
from bitexport.health.tensors import Health

__all__ = ["SIGNS", "Finding", "Health", "SignKind", "look_at_trainer_state", "look_at_vocabulary", "refuse"]
