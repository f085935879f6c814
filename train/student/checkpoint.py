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
from bitexport.train.student.unpack import unpacked_state

# The quantizations that can be trained.
_MASTER_WEIGHTS = {"linear_class": "autobitlinear", "quantization_mode": "online", "use_rms_norm": False}
_PACKED = {**_MASTER_WEIGHTS, "quantization_mode": "offline"}


def load_causal_lm(folder: str | Path) -> Any:
    """Load a checkpoint folder for training: float32, on the CPU, in evaluation mode.

    A checkpoint with master weights (``quantization_config`` online) gets its BitLinear layers and its SubLN
    again. One with packed weights (offline) does, too, with master weights that quantize to the packed ones.

    Raises:
        CheckpointError: transformers cannot load it, or its tensors are not exactly those of the model.
        UnsupportedError: transformers lacks its class, or it uses norms of use_rms_norm, or it is packed in
            another way.
    """
    checkpoint = open_checkpoint(folder)
    quantization = quantization_config(checkpoint.config)
    model_class = _class_of(checkpoint)
    if quantization is None:
        return load_exactly(model_class, checkpoint.path)
    is_packed = _check_trainable(folder, quantization)
    if model_class.__name__ in STUDENTS and Part.SUB_NORMS in find_parts(
        checkpoint.config, checkpoint.tensors
    ):
        model_class = with_sub_norms(model_class)
    state = unpacked_state(checkpoint) if is_packed else None
    model = load_exactly(model_class, checkpoint.path, state)
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


def _check_trainable(folder: str | Path, quantization: Any) -> bool:
    """Whether the weights are packed, and have to be unpacked; False for master weights.

    Raises:
        UnsupportedError: they are neither.
    """
    found = {key: quantization.get(key) or False for key in _MASTER_WEIGHTS}
    if found in (_MASTER_WEIGHTS, _PACKED):
        return found == _PACKED
    raise UnsupportedError(
        f"{folder}: {', '.join(found)} are {list(found.values())}; expected {list(_MASTER_WEIGHTS.values())} "
        f"(master weights) or {list(_PACKED.values())} (packed): give a folder that `bitexport train` or "
        "scripts/pack_checkpoint.py has written"
    )
