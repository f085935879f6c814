"""The largest sizes that config.json may give: what libllama can run, or much more than any model has."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from bitexport.errors import CheckpointError

#: libllama's LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS.
MAX_LAYERS = 512
MAX_EXPERTS = 1024

#: The longest published context is of 10 million tokens.
MAX_CONTEXT = 2**24

MOST: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), MAX_LAYERS),
        **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), MAX_EXPERTS),
        **dict.fromkeys(("max_position_embeddings", "n_positions", "max_sequence_length"), MAX_CONTEXT),
        "vocab_size": 2**24,
        "hidden_size": 2**20,
        "intermediate_size": 2**22,
        "num_attention_heads": 2**16,
        "num_key_value_heads": 2**16,
        "head_dim": 2**16,
    }
)


def check_sizes(config: Mapping[str, Any], where: str = "") -> None:
    """Check the sizes in config.json, before anything is made for each layer, expert, token or position.

    Args:
        where: the key of the part of config.json that ``config`` is.

    Raises:
        CheckpointError: one is above its limit. Sizes of the wrong type are left to the families.
    """
    for key, most in MOST.items():
        value = config.get(key)
        if isinstance(value, int) and value > most:
            raise CheckpointError(
                f"config.json: {where}{key} is {value}; expected at most {most}: correct it, or download it "
                "again"
            )
    nested = config.get("text_config")
    if not where and isinstance(nested, Mapping):
        check_sizes(nested, "text_config.")
