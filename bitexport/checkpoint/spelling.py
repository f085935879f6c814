"""Normalizes tensor names: other projects' spellings become those of transformers.

Wrappers of a model leave their own parts in the names: ``torch.compile``, FSDP and activation checkpointing
anywhere, DistributedDataParallel and PEFT in front. The language model of a model that also has other inputs
is one level further down. A training script may put all names behind an attribute of its own.

Some projects write SubLN as a Sequential of norm and linear layer in place of the linear layer; 1bitLLM has
different names for it. The norm in front of each linear layer is ``rms_norm`` in transformers and ``norm``
in Microsoft's embedding models.

A model saved without its head (Qwen3Model, as embedding models are) lacks the prefix ``model.`` of a decoder
that has one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from bitexport.errors import CheckpointError

Value = TypeVar("Value")

_LAYER = r"^(model\.layers\.\d+\.)"

#: Parts that wrappers add, anywhere in a name.
WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")

#: (regular expression, replacement), for the parts in front of a name.
PREFIXES = (
    (r"^(?:module\.|base_model\.model\.)+", ""),
    (r"^model\.language_model\.", "model."),
    (r"^language_model\.(model|lm_head)\.", r"\1."),
)

#: The name of the decoder inside a model with a head, and a tensor by which one without a head is recognised.
PREFIX = "model."
EMBEDDING = "embed_tokens.weight"

#: (regular expression, replacement).
SPELLINGS = (
    (_LAYER + r"self_attn\.inner_attn_ln\.weight$", r"\1self_attn.attn_sub_norm.weight"),
    (_LAYER + r"mlp\.ffn_layernorm\.weight$", r"\1mlp.ffn_sub_norm.weight"),
    (_LAYER + r"self_attn\.o_proj\.0\.weight$", r"\1self_attn.attn_sub_norm.weight"),
    (_LAYER + r"mlp\.down_proj\.0\.weight$", r"\1mlp.ffn_sub_norm.weight"),
    (_LAYER + r"(self_attn\.o_proj|mlp\.down_proj)\.1\.", r"\1\2."),
    (_LAYER + r"((?:self_attn|mlp)\.\w+_proj)\.norm\.weight$", r"\1\2.rms_norm.weight"),
)

#: What every name that :data:`SPELLINGS` replaces contains; most names are not looked at any further.
_SPELLED = re.compile(r"_ln\.|_layernorm\.|_proj\.([01]|norm)\.")

#: The tensor by which a prefix that all names share is recognised.
_EMBEDDING = PREFIX + EMBEDDING


def respell(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """``tensors`` with every name normalized to transformers' spelling.

    Raises:
        CheckpointError: two names are spellings of the same tensor.
    """
    normalized: dict[str, Value] = {}
    spelled: dict[str, str] = {}
    for original, name in zip(tensors, _with_prefix([unwrapped(name) for name in tensors]), strict=True):
        if _SPELLED.search(name):
            for pattern, replacement in SPELLINGS:
                name = re.sub(pattern, replacement, name)
        if name in normalized:
            raise CheckpointError(
                f"tensors '{spelled[name]}' and '{original}' are two spellings of the same tensor; expected "
                "only one of them: save the model again"
            )
        normalized[name] = tensors[original]
        spelled[name] = original
    return normalized


def unwrapped(name: str) -> str:
    """A tensor's name without the parts that wrappers of the model have added."""
    for wrapper in WRAPPERS:
        if wrapper in name:
            name = re.sub(rf"(^|\.){re.escape(wrapper)}", r"\1", name)
    for pattern, replacement in PREFIXES:
        name = re.sub(pattern, replacement, name)
    return name


def _with_prefix(names: Iterable[str]) -> list[str]:
    """``names`` as in a decoder with a head: with ``model.`` in front, and no other prefix that all share."""
    found = _without_shared_prefix(names)
    if EMBEDDING not in found or any(name.startswith(PREFIX) for name in found):
        return found
    return [name if name.startswith("lm_head.") else PREFIX + name for name in found]


def _without_shared_prefix(names: Iterable[str]) -> list[str]:
    """``names`` without the prefix in front of ``model.embed_tokens.weight``, if all of them have it."""
    found = list(names)
    prefix = next((name.removesuffix(_EMBEDDING) for name in found if name.endswith(f".{_EMBEDDING}")), "")
    if prefix and all(name.startswith(prefix) for name in found):
        return [name.removeprefix(prefix) for name in found]
    return found
