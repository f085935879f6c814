"""What config.json says about block diffusion: a model that fills in a block of tokens at once.

Our own key is ``block_diffusion``, with the attributes of :class:`BlockDiffusion`. Fast-dLLM v2
(arXiv 2509.26328) has the size of its blocks under ``bd_size`` and always shifts; its mask token is read from
``mask_token_id``, as in llama.cpp's converters of Dream and LLaDA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitexport.errors import CheckpointError

KEY = "block_diffusion"

#: A block is one evaluation, and libllama evaluates no more tokens at once in our contexts.
MAX_BLOCK = 512


@dataclass(frozen=True, slots=True)
class BlockDiffusion:
    """How a model of block diffusion is decoded.

    Attributes:
        block_size: tokens of a block; blocks begin at multiples of it.
        mask_token_id: the token that stands for one that is not known yet.
        token_shift: whether the logits of a position predict the token after it, as in any language model,
            and not the token of the position itself.
    """

    block_size: int
    mask_token_id: int
    token_shift: bool = True


def diffusion_settings(config: Mapping[str, Any]) -> BlockDiffusion | None:
    """The settings in a config.json; None if the model is not one of block diffusion.

    Raises:
        CheckpointError: the mask token is missing or not in the vocabulary, the size of a block is not from 2
            to :data:`MAX_BLOCK`, or the context is not longer than a block.
    """
    own = config.get(KEY)
    if own is None and config.get("bd_size") is None:
        return None
    if own is None:
        own = {"block_size": config["bd_size"], "mask_token_id": config.get("mask_token_id")}
    if not isinstance(own, Mapping):
        raise CheckpointError(f"config.json: {KEY} is {own!r}; expected an object, or no such key")
    size = _integer(own.get("block_size"))
    if size is None or not 2 <= size <= MAX_BLOCK:
        raise CheckpointError(
            f"config.json: a block of block diffusion has {own.get('block_size')!r} tokens; expected 2 to "
            f"{MAX_BLOCK}"
        )
    found = own.get("mask_token_id")
    if found is None:
        raise CheckpointError(
            "config.json describes a model of block diffusion, but names no mask token; add mask_token_id to "
            f"{KEY}"
        )
    mask, vocabulary = _integer(found), _size(config, "vocab_size")
    if mask is None or mask < 0 or (vocabulary is not None and mask >= vocabulary):
        raise CheckpointError(
            f"config.json: the mask token of block diffusion is {found!r}, but the vocabulary has "
            f"{vocabulary} entries; expected 0 or more, and less than that"
        )
    shift = own.get("token_shift", True)
    if not isinstance(shift, bool):
        raise CheckpointError(f"config.json: token_shift of {KEY} is {shift!r}; expected true or false")
    context = _size(config, "max_position_embeddings")
    if context is not None and context <= size:
        raise CheckpointError(
            f"config.json: a block of block diffusion has {size} tokens, and the context only {context}; "
            "expected a longer context"
        )
    return BlockDiffusion(size, mask, shift)


def _size(config: Mapping[str, Any], key: str) -> int | None:
    """A number of the language model, which a model of several kinds of input has in ``text_config``."""
    text = config.get("text_config")
    nested = text.get(key) if isinstance(text, Mapping) else None
    return _integer(config.get(key, nested))


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
