"""Makes a model one of block diffusion: it gets a mask token, and its configuration says so."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from bitexport.checkpoint.block_diffusion import KEY, BlockDiffusion, diffusion_settings
from bitexport.errors import UsageError
from bitexport.train.config import TrainConfig

#: The mask token of a tokenizer that has none.
MASK_TOKEN = "<|mask|>"

# Other roles of a token, as tokenizers of transformers call them.
_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token")


def prepare_diffusion(model: Any, tokenizer: Any, config: TrainConfig) -> None:
    """Give ``model`` and ``tokenizer`` a mask token, in place, if ``config`` trains block diffusion.

    A token that the tokenizer lacks gets the first id that is free. If the model has no embedding for it, one
    is added: the mean of all others. Nothing changes in a model that has been prepared before.

    Raises:
        UsageError: the mask token already has another role.
    """
    if not config.diffusion_weight:
        return
    known = diffusion_settings(model.config.to_dict())
    mask = _mask_token(tokenizer, config, known)
    if mask >= model.config.vocab_size:
        _add_embedding(model, mask + 1)
    setattr(model.config, KEY, asdict(BlockDiffusion(config.diffusion_block_size, mask)))


def _mask_token(tokenizer: Any, config: TrainConfig, known: BlockDiffusion | None) -> int:
    if known is not None and not config.diffusion_mask_token:
        return known.mask_token_id
    text = config.diffusion_mask_token or tokenizer.mask_token or MASK_TOKEN
    role = next((role for role in _ROLES if getattr(tokenizer, role, None) == text), None)
    if role is not None:
        raise UsageError(
            f"config: diffusion_mask_token = {text!r} is the tokenizer's {role}; expected a token without "
            'another role, or "" for a new one'
        )
    tokenizer.add_special_tokens({"mask_token": text})
    return int(tokenizer.convert_tokens_to_ids(text))


def _add_embedding(model: Any, size: int) -> None:
    old = model.config.vocab_size
    model.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        for layer in {model.get_input_embeddings(), model.get_output_embeddings()}:
            layer.weight[old:] = layer.weight[:old].mean(0)
