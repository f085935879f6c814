"""Opens a checkpoint as a :class:`~bitexport.reference.model.Reference`, in the class that it needs.

A family's class is one of transformers', which reads the weights itself where it can; otherwise our packings
unpack them. A checkpoint without a family runs as :mod:`bitexport.reference.any_architecture` says.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from bitexport.checkpoint import Checkpoint, open_checkpoint
from bitexport.checkpoint.packings import ONLINE, packing_of, quantization_config
from bitexport.checkpoint.packings.master import MasterWeights
from bitexport.checkpoint.packings.pre_dequantized import PreDequantized
from bitexport.checkpoint.packings.two_bit import TwoBit
from bitexport.checkpoint.shards import stored_as_safetensors
from bitexport.errors import CheckpointError, UnsupportedError
from bitexport.families import Family, Part, check_runs, family_of, has_family
from bitexport.reference.any_architecture import Names, load_any
from bitexport.reference.loading import check_tensors
from bitexport.reference.model import Reference, eager, first_line, load_tokenizer, quiet
from bitexport.reference.norms import connect_norms, mark_heads_first, with_sub_norms, without_sub_norms
from bitexport.reference.weight_only import keep_ternary_weights
from bitexport.upstream import is_upstream


def load_reference(
    path: str | os.PathLike[str], architecture: str | None = None, *, all_float: bool = False
) -> Reference:
    """Load a checkpoint folder as transformers does: float32, eager attention, on the CPU.

    Args:
        path: the folder.
        architecture: the GGUF architecture of the file made from it, if it has no family; None to derive it
            from config.json.
        all_float: the model is not ternary, for example a teacher: nothing is quantized. Otherwise float
            weights that are not ternary yet are master weights.

    Raises:
        CheckpointError: transformers cannot load it, or would leave weights uninitialized.
        UnsupportedError: no family covers it, and transformers or the gguf package does not know it either.
        TokenizerError: it has no tokenizer that transformers can load.
    """
    checkpoint = open_checkpoint(Path(path))
    family = _family(checkpoint)
    with quiet(), eager():
        if isinstance(family, UnsupportedError):
            model, names = _load_upstream(checkpoint, architecture, family)
        elif transformers_reads(checkpoint):
            model, names = _load_by_family(checkpoint, family, all_float), family.gguf_name
        else:
            model, names = _load_unpacked(checkpoint, family), family.gguf_name
        tokenizer = load_tokenizer(checkpoint.path)
    known = None if isinstance(family, UnsupportedError) else family
    return Reference(checkpoint.path, model.eval(), known, tokenizer, names)


def _family(checkpoint: Checkpoint) -> Family | UnsupportedError:
    """The checkpoint's family, as convert chooses it; the reason if llama.cpp's own converter is used.

    Raises:
        UnsupportedError: nothing converts the checkpoint.
    """
    try:
        check_runs(checkpoint.config, checkpoint.tensors)
    except UnsupportedError as error:
        if not is_upstream(checkpoint.config):
            raise
        return error
    return family_of(checkpoint.config, checkpoint.tensors)


def _load_upstream(
    checkpoint: Checkpoint, architecture: str | None, by_hand: UnsupportedError
) -> tuple[Any, Names]:
    try:
        return load_any(checkpoint, architecture)
    except (CheckpointError, UnsupportedError):
        if has_family(checkpoint.config):
            # what our graph lacks is the better reason: llama.cpp's own has no SubLN at all
            raise by_hand from None
        raise


def transformers_reads(checkpoint: Checkpoint) -> bool:
    """Whether transformers' BitNet layers can load the weights as they are stored.

    They know floats, and packed bytes with one scale; not the packings of other libraries.
    """
    packing = packing_of(checkpoint)
    if isinstance(packing, (MasterWeights, PreDequantized)):
        return True
    weights = [
        name
        for name in checkpoint.tensors
        if f"{name.removesuffix('.weight')}.weight_scale" in checkpoint.tensors
    ]
    return isinstance(packing, TwoBit) and all(
        checkpoint.info(name).dtype == "U8" and packing.scales(checkpoint, name).group is None
        for name in weights
    )


def _load_unpacked(checkpoint: Checkpoint, family: Family) -> Any:
    """The model with weights that our packings unpacked.

    Raises:
        UnsupportedError: it has norms that transformers' class lacks.
    """
    parts = family.parts(checkpoint.config, checkpoint.tensors)
    if Part.INPUT_NORMS in parts:
        raise UnsupportedError(
            f"{packing_of(checkpoint).name} weights with a norm in front of each linear layer have no "
            "PyTorch side here; compare a checkpoint of the same model with master weights"
        )
    model_class = getattr(transformers, family.model_class)
    if Part.SUB_NORMS in parts and model_class is not transformers.BitNetForCausalLM:
        model_class = with_sub_norms(model_class)
    if Part.SUB_NORMS not in parts and model_class is transformers.BitNetForCausalLM:
        model_class = without_sub_norms(model_class)
    model, _ = load_any(checkpoint, None, model_class, family.gguf_name)
    if family.qk_norm_after_rope:
        mark_heads_first(model)
    return model


def _load_by_family(checkpoint: Checkpoint, family: Family, all_float: bool) -> Any:
    model = _load_model(checkpoint, family, all_float)
    # transformers keeps the bfloat16 tensors of a pre-quantized checkpoint whatever dtype is requested, and
    # its own float() rejects quantized models. nn.Module.float() leaves packed weights uint8.
    nn.Module.float(model)
    if not all_float:
        keep_ternary_weights(model, checkpoint)
    connect_norms(model)
    if family.qk_norm_after_rope or family.model_class == "Gemma3ForCausalLM":
        mark_heads_first(model)
    return model


def _load_model(checkpoint: Checkpoint, family: Family, all_float: bool) -> Any:
    parts = family.parts(checkpoint.config, checkpoint.tensors)
    model_class = getattr(transformers, family.model_class)
    if Part.SUB_NORMS in parts and model_class is not transformers.BitNetForCausalLM:
        model_class = with_sub_norms(model_class)
    if Part.SUB_NORMS not in parts and model_class is transformers.BitNetForCausalLM:
        model_class = without_sub_norms(model_class)
    try:
        config = _model_config(checkpoint, family, all_float)
        model, info = model_class.from_pretrained(
            checkpoint.path,
            config=config,
            key_mapping=_key_mapping(checkpoint),
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            use_safetensors=stored_as_safetensors(checkpoint.path),
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, ImportError) as error:
        raise CheckpointError(
            f"{checkpoint.path}: transformers {transformers.__version__} cannot load it: "
            f"{first_line(error)}; see `bitexport inspect` on that folder"
        ) from error
    check_tensors(checkpoint.path, model, info)
    return model


def _model_config(checkpoint: Checkpoint, family: Family, all_float: bool) -> Any:
    """The configuration for transformers, completed from the tensors and the family."""
    config = getattr(transformers, family.model_class).config_class.from_pretrained(
        checkpoint.path, local_files_only=True
    )
    numbers = family.hyperparameters(checkpoint.config, checkpoint.tensors)
    config.tie_word_embeddings = numbers.tied  # a model without a head has none to load
    if all_float:
        return config
    quantization = dict(quantization_config(checkpoint.config) or ONLINE)
    if not any(name.endswith(".weight_scale") for name in checkpoint.tensors):
        quantization |= ONLINE  # nothing is packed, whatever config.json says: see convert --master
    if Part.INPUT_NORMS in numbers.parts:
        quantization |= {"use_rms_norm": True, "rms_norm_eps": numbers.input_norm_eps}
    config.quantization_config = quantization
    return config


def _key_mapping(checkpoint: Checkpoint) -> dict[str, str] | None:
    """Patterns of the tensors to rename, see :mod:`bitexport.checkpoint.spelling`; None if there are none."""
    # anchored: "norm.weight", as a model without a head has it, is the end of many other names
    renamed = {
        f"^{re.escape(info.name)}$": name for name, info in checkpoint.tensors.items() if info.name != name
    }
    return renamed or None
