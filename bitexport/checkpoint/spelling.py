"""Normalizes tensor names: other projects' spellings become those of transformers.

A model saved without its head (Qwen3Model, as embedding models are) lacks the prefix ``model.`` of a decoder
that has one. Some projects write SubLN as a Sequential of norm and linear layer in place of the linear layer;
1bitLLM has different names for it. The norm in front of each linear layer is ``rms_norm`` in transformers and
``norm`` in Microsoft's embedding models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from bitexport.errors import CheckpointError

Value = TypeVar("Value")

_LAYER = r"^(model\.layers\.\d+\.)"

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


def respell(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """``tensors`` with every name normalized to transformers' spelling.

    Raises:
        CheckpointError: two names are spellings of the same tensor.
    """
    normalized: dict[str, Value] = {}
    spelled: dict[str, str] = {}
    prefix = "" if any(name.startswith(PREFIX) for name in tensors) or EMBEDDING not in tensors else PREFIX
    for original, value in tensors.items():
        name = original if original.startswith("lm_head.") else prefix + original
        for pattern, replacement in SPELLINGS:
            name = re.sub(pattern, replacement, name)
        if name in normalized:
            raise CheckpointError(
                f"tensors '{spelled[name]}' and '{original}' are two spellings of the same tensor; expected "
                "only one of them: save the model again"
            )
        normalized[name] = value
        spelled[name] = original
    return normalized
