"""Checkpoints of models in training: ordinary ones of transformers, with float32 master weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from bitexport.checkpoint import Checkpoint, open_checkpoint
from bitexport.checkpoint.packings import quantization_config
from bitexport.errors import UnsupportedError
from bitexport.families.parts import SUBLN_ENDING, Part, find_parts
from bitexport.reference.loading import load_exactly
from bitexport.reference.norms import connect_norms, with_sub_norms
from bitexport.train.student.pack import tokenizer_config, write_json
from bitexport.train.student.saved_form import STUDENTS, write_saved_form
from bitexport.train.student.surgery import replace_projections

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
    model_class = _class_of(checkpoint)
    if quantization is None:
        return load_exactly(model_class, checkpoint.path)
    _check_master_weights(folder, quantization)
    if model_class.__name__ in STUDENTS and Part.SUB_NORMS in find_parts(
        checkpoint.config, checkpoint.tensors
    ):
        model_class = with_sub_norms(model_class)
    model = load_exactly(model_class, checkpoint.path)
    replace_projections(model)
    connect_norms(model)
    return model


def save_checkpoint(model: Any, tokenizer: Any, folder: str | Path) -> None:
    """Save a checkpoint: float32 master weights, config, tokenizer; a student with SubLN gets its form."""
    model.config.use_cache = True  # the Trainer switches it off
    model.save_pretrained(folder)
    write_saved_form(Path(folder), has_sub_norms=getattr(model, "sub_norms_added", False))
    tokenizer.save_pretrained(folder)
    if type(tokenizer).__name__ == "TokenizersBackend":  # a name that transformers 4 does not know
        write_json(Path(folder) / "tokenizer_config.json", tokenizer_config(Path(folder)))


def _class_of(checkpoint: Checkpoint) -> type[Any]:
    """The class of transformers that a checkpoint is trained as; of a student with SubLN, its base model's.

    Code in the checkpoint is not run.
    """
    architecture = str((checkpoint.config.get("architectures") or ["?"])[0])
    base = architecture
    if architecture.endswith(SUBLN_ENDING):
        base = architecture.removesuffix(SUBLN_ENDING) + "ForCausalLM"
    found: type[Any] | None = getattr(transformers, base, None)
    if found is None or not architecture.endswith("ForCausalLM"):
        raise UnsupportedError(
            f"{checkpoint.path}: architecture {architecture}; expected one of transformers' causal LMs"
        )
    return found


def _check_master_weights(folder: str | Path, quantization: Any) -> None:
    found = [quantization.get(key) or False for key in _MASTER_WEIGHTS]
    expected = list(_MASTER_WEIGHTS.values())
    if found != expected:
        raise UnsupportedError(
            f"{folder}: {', '.join(_MASTER_WEIGHTS)} are {found}; expected master weights, {expected}: give "
            "the folder that was trained, not the packed one"
        )
