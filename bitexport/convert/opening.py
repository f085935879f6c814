"""Opens the checkpoint of a conversion, with what the user says about it: ``--master`` and ``--adapter``."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from bitexport.checkpoint import Checkpoint, open_checkpoint
from bitexport.checkpoint.adapter import MergedCheckpoint, merge_adapter
from bitexport.checkpoint.folders import ADAPTER_CONFIG
from bitexport.checkpoint.packings import ONLINE, keeps_float, packing_of
from bitexport.checkpoint.packings.float_ternary import rules_out_ternary
from bitexport.checkpoint.packings.master import MasterWeights
from bitexport.checkpoint.packings.pre_dequantized import PreDequantized
from bitexport.errors import CheckpointError, UnsupportedError


def open_source(path: str | Path, *, adapter: str | Path | None, master: bool, all_float: bool) -> Checkpoint:
    """Open a checkpoint; arguments as in :func:`bitexport.convert.convert`.

    Raises:
        CheckpointError: see :func:`open_checkpoint`; or the folder also holds an adapter, and ``adapter`` is
            None; or ``master`` is set, and the weights are packed.
        UnsupportedError: the adapter cannot be merged into these weights.
    """
    checkpoint = open_checkpoint(path)
    if master:
        checkpoint = as_master_weights(checkpoint)
    if adapter is None:
        _check_no_adapter(checkpoint)
        return checkpoint
    if not all_float:
        _check_master(checkpoint)
    merged = merge_adapter(checkpoint, adapter)
    if not all_float:
        _check_not_ternary(checkpoint, merged)
    return merged


def as_master_weights(checkpoint: Checkpoint) -> Checkpoint:
    """``checkpoint`` with a ``quantization_config`` of master weights, whatever config.json says.

    Raises:
        CheckpointError: it has packed weights.
    """
    packed = next((name for name in checkpoint.tensors if name.endswith(".weight_scale")), None)
    if packed is not None:
        raise CheckpointError(
            f"--master with '{packed}', which only packed weights have; expected float master weights: "
            "convert it without --master"
        )
    found = checkpoint.config.get("quantization_config")
    quantization = {**(found if isinstance(found, dict) else {}), **ONLINE}
    return replace(
        checkpoint, config=MappingProxyType({**checkpoint.config, "quantization_config": quantization})
    )


def adapter_warnings(checkpoint: Checkpoint, *, all_float: bool) -> list[str]:
    """What a user should know about a merged adapter."""
    if all_float or not isinstance(checkpoint, MergedCheckpoint):
        return []
    return [
        f"the adapter {checkpoint.adapter} is merged into the master weights, which are then quantized; "
        "changes that are small against the step between two trits are lost, so compare the file's answers "
        "with those of model and adapter in PyTorch"
    ]


def merged_adapter(checkpoint: Checkpoint) -> str | None:
    """The folder of the adapter that is merged into a checkpoint; None without one."""
    return str(checkpoint.adapter) if isinstance(checkpoint, MergedCheckpoint) else None


def _check_no_adapter(checkpoint: Checkpoint) -> None:
    if (checkpoint.path / ADAPTER_CONFIG).is_file():
        folder = shlex.quote(str(checkpoint.path))
        raise CheckpointError(
            f"{checkpoint.path} holds a model and an adapter ({ADAPTER_CONFIG}), which a conversion of the "
            f"model alone would drop; merge it with --adapter {folder}, or move {ADAPTER_CONFIG} to another "
            "folder to convert the model without it"
        )


def _check_master(checkpoint: Checkpoint) -> None:
    """Raise UnsupportedError unless the packing is that of master weights."""
    packing = packing_of(checkpoint)
    if packing.name == PreDequantized.name:
        raise UnsupportedError(
            "--adapter without a quantization_config in config.json: ternary weights would not stay ternary "
            "with an adapter merged into them; expected float or master weights: for a float model, add "
            "--float; for master weights, which the model quantizes, add --master"
        )
    if packing.name != MasterWeights.name:
        raise UnsupportedError(
            f"--adapter with {packing.name} weights, which are already ternary: merged with an adapter they "
            "would not be; expected float or master weights: give the checkpoint with the master weights "
            "from which this one was packed"
        )


def _check_not_ternary(checkpoint: Checkpoint, merged: MergedCheckpoint) -> None:
    """Raise UnsupportedError if a ternary layer that the adapter changes holds ternary values already."""
    for name in merged.changes:
        if keeps_float(checkpoint, name) or not name.endswith("_proj.weight"):
            continue
        if not rules_out_ternary(checkpoint, name):
            raise UnsupportedError(
                f"tensor '{name}' is already ternary, and the adapter {merged.adapter} merged into it would "
                "leave values that are not; expected float or master weights: give the checkpoint with the "
                "master weights, or add the adapter to a float model with --float"
            )
