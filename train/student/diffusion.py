"""Makes a model one of block diffusion: it gets a mask token, and its configuration says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch

from bitexport.checkpoint.block_diffusion import KEY, BlockDiffusion, diffusion_settings
from bitexport.errors import UsageError
from bitexport.train.config import TrainConfig

#: The mask token of a tokenizer that has none.
MASK_TOKEN = "<|mask|>"

#: The tokens of a block of a model that has not been trained so.
DEFAULT_BLOCK = 8

# Other roles of a token, as tokenizers of transformers call them.
_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token")


def _say_nothing(_: str) -> None:
    pass


def prepare_diffusion(
    model: Any, tokenizer: Any, config: TrainConfig, say: Callable[[str], None] = _say_nothing
) -> None:
    """Give ``model`` and ``tokenizer`` a mask token, in place, if ``config`` trains block diffusion.

    A token that the tokenizer lacks gets the first id that is free. If the model has no embedding for it, one
    is added: the mean of all others. A model that has been prepared before keeps its settings, but for those
    that ``config`` sets; ``say`` is told of these.

    Raises:
        UsageError: the mask token already has another meaning, or a block is not shorter than a sequence.
        CheckpointError: the model's own settings are invalid.
    """
    if not config.diffusion_weight:
        return
    known = diffusion_settings(model.config.to_dict())
    size = config.diffusion_block_size or (DEFAULT_BLOCK if known is None else known.block_size)
    if size >= config.sequence_length:
        raise UsageError(
            f"config: sequence_length = {config.sequence_length}; expected more than the {size} tokens of a "
            "block"
        )
    mask = _mask_token(tokenizer, config, known)
    if mask >= model.config.vocab_size:
        _add_embedding(model, mask + 1)
    settings = (
        BlockDiffusion(size, mask) if known is None else replace(known, block_size=size, mask_token_id=mask)
    )
    if known is not None and settings != known:
        say(f"block diffusion: the model had {_describe(known)}, and now has {_describe(settings)}")
    setattr(model.config, KEY, asdict(settings))


def _describe(settings: BlockDiffusion) -> str:
    return f"blocks of {settings.block_size} tokens and the mask token {settings.mask_token_id}"


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
    known_as = tokenizer.get_vocab().get(text)
    if known_as is not None and not _is_special(tokenizer, known_as):
        raise UsageError(
            f"config: diffusion_mask_token = {text!r} is an ordinary token ({known_as}) that texts contain; "
            'expected a special token, a new one, or ""'
        )
    tokenizer.add_special_tokens({"mask_token": text})
    return int(tokenizer.convert_tokens_to_ids(text))


def _is_special(tokenizer: Any, token: int) -> bool:
    added = tokenizer.added_tokens_decoder.get(token)
    return added is not None and bool(added.special)


def _add_embedding(model: Any, size: int) -> None:
    old = model.config.vocab_size
    model.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        for layer in {model.get_input_embeddings(), model.get_output_embeddings()}:
            layer.weight[old:] = layer.weight[:old].mean(0)
