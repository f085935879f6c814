"""A checkpoint into a class of transformers, every tensor accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bitexport.errors import CheckpointError


def load_exactly(model_class: Any, folder: Path) -> Any:
    """A checkpoint as ``model_class`` of transformers, float32, on the CPU, without quantized layers.

    Raises:
        CheckpointError: transformers cannot load it, or its tensors are not exactly those of the model.
    """
    try:
        config = model_class.config_class.from_pretrained(folder, local_files_only=True)
        vars(config).pop("quantization_config", None)  # transformers would put in layers of its own
        model, info = model_class.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # else the message would not say which
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, ImportError) as error:
        raise CheckpointError(f"{folder}: transformers cannot load it: {error}; save it again") from error
    for kind in ("missing", "unexpected", "mismatched"):
        if names := sorted(key if isinstance(key, str) else key[0] for key in info[f"{kind}_keys"]):
            expected = f"expected exactly those of {model_class.__name__}: save the checkpoint again"
            raise CheckpointError(
                f"{folder}: {len(names)} tensors are {kind}: {', '.join(names[:3])}; {expected}"
            )
    return model
