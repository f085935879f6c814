"""Fully sharded data parallelism: what does not work with it, and the complete model from the shards."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from bitexport.errors import UsageError
from bitexport.train.config import TrainConfig


def check_fsdp(config: TrainConfig, plugin: Any | None) -> None:
    """Raise UsageError for settings that need a complete weight outside the layer that owns it.

    Args:
        plugin: accelerate's FSDP plugin; None if the model is not sharded.
    """
    if plugin is None:
        if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
            raise UsageError(
                "FSDP does not work on CPUs: accelerate shards on accelerators only; leave it out"
            )
        return
    if plugin.fsdp_version != 2:
        raise UsageError(f"FSDP does not work with fsdp_version {plugin.fsdp_version} here; set it to 2")
    if config.optimizer == "muon":
        raise UsageError('FSDP does not work with optimizer = "muon"; set "adamw"')
    if config.chunk_tokens:
        raise UsageError(f"FSDP does not work with chunk_tokens = {config.chunk_tokens}; set it to 0")
    if config.router or config.logit_projector:
        raise UsageError("FSDP does not work with router or logit_projector; set both to false")


def gather_state_dict(model: torch.nn.Module) -> dict[str, Any]:
    """The complete state dict of a sharded model, in the main process; all processes must call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=options)
