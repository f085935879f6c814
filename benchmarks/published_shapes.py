"""The shapes of docs/training-recipes.md: classes of transformers, and sizes from config.json."""

from __future__ import annotations

from typing import Any

from transformers import HunYuanDenseV1Config, HunYuanDenseV1ForCausalLM, Qwen3Config, Qwen3ForCausalLM

#: Class of the model, class of its configuration, and the configuration's sizes.
Shape = tuple[Any, Any, dict[str, Any]]

_HEADS = {"num_attention_heads": 16, "head_dim": 128, "tie_word_embeddings": True}
PUBLISHED_SHAPES: dict[str, Shape] = {
    "Qwen3-0.6B": (
        Qwen3ForCausalLM,
        Qwen3Config,
        {
            **_HEADS,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_key_value_heads": 8,
            "vocab_size": 151_936,
        },
    ),
    "HY-MT1.5-1.8B": (
        HunYuanDenseV1ForCausalLM,
        HunYuanDenseV1Config,
        {
            **_HEADS,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 32,
            "num_key_value_heads": 4,
            "vocab_size": 120_818,
        },
    ),
}
