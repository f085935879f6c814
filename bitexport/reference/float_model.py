"""Checkpoints that are not ternary: how they are recognised, and how transformers runs them."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from bitexport.checkpoint import Checkpoint
from bitexport.checkpoint.packings import packing_of, quantization_config
from bitexport.checkpoint.shards import stored_as_safetensors
from bitexport.errors import CheckpointError, UnsupportedError
from bitexport.families import Role, family_of, has_family
from bitexport.reference.delivered import has_ternary
from bitexport.reference.loading import check_tensors
from bitexport.reference.model import first_line, quiet
from bitexport.upstream import is_upstream

#: Exceptions that transformers raises for a damaged checkpoint.
_FAILURES = (OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError, ImportError)


def is_ternary(checkpoint: Checkpoint) -> bool:
    """Whether config.json says that the weights are ternary, or the first linear layer holds only -a, 0, a.

    Raises:
        UnsupportedError: the quantization is not ternary.
    """
    if quantization_config(checkpoint.config) is not None:
        return True
    if not has_family(checkpoint.config):
        return is_upstream(checkpoint.config) and has_ternary(checkpoint)
    try:
        family = family_of(checkpoint.config, checkpoint.tensors)
        numbers = family.hyperparameters(checkpoint.config, checkpoint.tensors)
        first = next(claim for claim in family.claims(numbers) if claim.role is Role.TERNARY)
        packing_of(checkpoint).check(checkpoint, first.source)
    except (CheckpointError, UnsupportedError):
        return False
    return True


def float_sizes(checkpoint: Checkpoint) -> tuple[int, int]:
    """Vocabulary size and context length in tokens, from the configuration as transformers reads it.

    Raises:
        CheckpointError: transformers cannot read config.json, or a size is missing there.
    """
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(
                checkpoint.path, local_files_only=True, trust_remote_code=False
            )
    except _FAILURES as error:
        raise CheckpointError(
            f"{checkpoint.path}: transformers {transformers.__version__} cannot read its config.json: "
            f"{first_line(error)}; expected a causal language model that it knows"
        ) from error
    vocabulary, context = (getattr(config, name, None) for name in ("vocab_size", "max_position_embeddings"))
    if not isinstance(vocabulary, int) or not isinstance(context, int):
        raise CheckpointError(
            f"{checkpoint.path}: config.json gives vocab_size {vocabulary} and max_position_embeddings "
            f"{context}; expected a causal language model that has both as numbers"
        )
    return vocabulary, context


def load_float(checkpoint: Checkpoint) -> Any:
    """The model in float32, eager attention, on the CPU, in evaluation mode.

    Nothing is downloaded and no code from the checkpoint is run.

    Raises:
        CheckpointError: transformers cannot load it, or would leave weights uninitialized.
    """
    try:
        with quiet():
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                checkpoint.path,
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
                use_safetensors=stored_as_safetensors(checkpoint.path),
                trust_remote_code=False,
                output_loading_info=True,
            )
    except _FAILURES as error:
        raise CheckpointError(
            f"{checkpoint.path}: transformers {transformers.__version__} cannot load it: "
            f"{first_line(error)}; expected a causal language model with float weights"
        ) from error
    check_tensors(checkpoint.path, model, info, "a ternary model needs its quantization_config")
    return model.eval()
