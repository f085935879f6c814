"""Loads a checkpoint into a transformers class, with every tensor accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bitexport.checkpoint.shards import read_json, stored_as_safetensors
from bitexport.errors import CheckpointError

# Keys of config.json that belong to the saved form: transformers would replace the linear layers, and look
# for the code of a class of the checkpoint's own.
_NOT_LOADED = ("quantization_config", "auto_map", "model_type")


def load_exactly(model_class: Any, folder: Path, state: Mapping[str, torch.Tensor] | None = None) -> Any:
    """Load a checkpoint as ``model_class`` of transformers: float32, on the CPU, without quantized layers.

    Args:
        model_class: one of transformers' classes, or a subclass.
        folder: of the checkpoint.
        state: the tensors by name, if they are not those of the folder; only the configuration is read then.

    Raises:
        CheckpointError: transformers cannot load it, or its tensors are not exactly those of the model.
    """
    try:
        values = dict(read_json(folder / "config.json"))
        for key in _NOT_LOADED:
            values.pop(key, None)
        config = model_class.config_class.from_dict(values)
        model, info = model_class.from_pretrained(
            folder if state is None else None,
            config=config,
            state_dict=state,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=stored_as_safetensors(folder),
            ignore_mismatched_sizes=True,  # otherwise the message would not name them
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, ImportError) as error:
        raise CheckpointError(f"{folder}: transformers cannot load it: {error}; save it again") from error
    check_tensors(folder, model, info)
    return model


def check_tensors(
    folder: Path, model: Any, info: Mapping[str, Any], advice: str = "save the checkpoint again"
) -> None:
    """Raise CheckpointError unless the checkpoint held exactly the tensors of ``model``.

    ``info`` is what transformers' ``from_pretrained`` returns with ``output_loading_info``.
    """
    for kind in ("missing", "unexpected", "mismatched"):
        # mismatched_keys has tuples: the name and both shapes
        if names := sorted(key if isinstance(key, str) else key[0] for key in info.get(f"{kind}_keys", ())):
            expected = f"expected exactly those of transformers' {type(model).__name__}: {advice}"
            raise CheckpointError(
                f"{folder}: {len(names)} tensors are {kind}: {', '.join(names[:3])}; {expected}"
            )
