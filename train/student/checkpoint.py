"""Checkpoints of models in training: ordinary ones of their class, with float32 master weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from bitexport.checkpoint import open_checkpoint
from bitexport.checkpoint.packings import quantization_config
from bitexport.errors import UnsupportedError
from bitexport.reference.loading import load_exactly
from bitexport.reference.norms import connect_norms, with_sub_norms
from bitexport.train.student.pack import tokenizer_config, write_json
from bitexport.train.student.surgery import STUDENTS, SUB_NORMS_OF_FIRST_LAYER, replace_projections

# The quantization that can be trained.
_MASTER_WEIGHTS = {"linear_class": "autobitlinear", "quantization_mode": "online", "use_rms_norm": False}


def load_causal_lm(folder: str | Path) -> Any:
    """Load a checkpoint folder for training: float32, on the CPU, in evaluation mode.

    A checkpoint with master weights (``quantization_config`` online) gets its BitLinear layers and its SubLN
    again.

    Raises:
        CheckpointError: transformers cannot load it, or its tensors are not exactly those of the model.
        UnsupportedError: transformers lacks its class, or it is packed, or it uses norms of use_rms_norm.
    """
    checkpoint = open_checkpoint(folder)
    quantization = quantization_config(checkpoint.config)
    architecture = str((checkpoint.config.get("architectures") or ["?"])[0])
    model_class = getattr(transformers, architecture, None)
    if model_class is None or not architecture.endswith("ForCausalLM"):
        expected = "expected one of transformers' causal LMs"
        raise UnsupportedError(f"{folder}: architecture {architecture}; {expected}")
    if quantization is None:
        return load_exactly(model_class, checkpoint.path)
    _check_master_weights(folder, quantization)
    if architecture in STUDENTS and SUB_NORMS_OF_FIRST_LAYER[0] in checkpoint.tensors:
        model_class = with_sub_norms(model_class)
    model = load_exactly(model_class, checkpoint.path)
    replace_projections(model)
    connect_norms(model)
    return model


def save_checkpoint(model: Any, tokenizer: Any, folder: str | Path) -> None:
    """Save an ordinary checkpoint of the model's class: float32 master weights, config, tokenizer."""
    model.config.use_cache = True  # the Trainer switches it off
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if type(tokenizer).__name__ == "TokenizersBackend":  # a name that transformers 4 does not know
        write_json(Path(folder) / "tokenizer_config.json", tokenizer_config(Path(folder)))


def _check_master_weights(folder: str | Path, quantization: Any) -> None:
    found = [quantization.get(key) or False for key in _MASTER_WEIGHTS]
    expected = list(_MASTER_WEIGHTS.values())
    if found != expected:
        raise UnsupportedError(
            f"{folder}: {', '.join(_MASTER_WEIGHTS)} are {found}; expected master weights, {expected}: give "
            "the folder that was trained, not the packed one"
        )
