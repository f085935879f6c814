"""Other projects' spellings of tensor names, and the one that bitexport uses: transformers' own.

SubLN is written by some as a Sequential in place of the linear layer, the norm first; 1bitLLM has names of
its own for it. Norms in front of each linear layer are ``rms_norm`` in transformers and ``norm`` in
Microsoft's embedding models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from bitexport.errors import CheckpointError

Value = TypeVar("Value")

_LAYER = r"^(model\.layers\.\d+\.)"

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
    """``tensors`` with every name in our spelling.

    Raises:
        CheckpointError: two tensors are two spellings of one.
    """
    found: dict[str, Value] = {}
    source: dict[str, str] = {}
    for name, value in tensors.items():
        ours = name
        for pattern, replacement in SPELLINGS:
            ours = re.sub(pattern, replacement, ours)
        if ours in found:
            raise CheckpointError(
                f"tensors '{source[ours]}' and '{name}' are two spellings of one; expected only one of them: "
                "save the model again"
            )
        found[ours], source[ours] = value, name
    return found
