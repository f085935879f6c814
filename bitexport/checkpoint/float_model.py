"""Recognises a full-precision checkpoint, given where a ternary one is needed."""

from __future__ import annotations

from bitexport.checkpoint.packings import quantization_config
from bitexport.checkpoint.packings.float_ternary import rules_out_ternary
from bitexport.checkpoint.reader import Checkpoint
from bitexport.errors import CheckpointError, UnsupportedError, UsageError

_FIRST_LAYER = ".layers.0."


def is_full_precision(checkpoint: Checkpoint) -> bool:
    """Whether config.json names no quantization, and no projection of the first layer is ternary."""
    if quantization_config(checkpoint.config) is not None:
        return False
    names = [name for name in checkpoint.tensors if _FIRST_LAYER in name and name.endswith("_proj.weight")]
    try:
        return bool(names) and all(rules_out_ternary(checkpoint, name) for name in names)
    except (CheckpointError, UnsupportedError):
        return False


def refuse_full_precision(checkpoint: Checkpoint) -> None:
    """Raise UsageError if the checkpoint is a float model, for instance a teacher."""
    if is_full_precision(checkpoint):
        raise UsageError(
            f"{checkpoint.path} is a full-precision checkpoint: no quantization_config, and no weight is "
            "ternary; expected a ternary one: give the student, as stage3/model of a run; to master "
            "weights, add a quantization_config; a teacher is compared by `bitexport eval --teacher`"
        )
