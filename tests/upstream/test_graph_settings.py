"""Settings of config.json that llama.cpp's graphs do not read: refused if a graph computes something else."""

from __future__ import annotations

import re
from typing import Any

import pytest

from bitexport.convert.upstream_checks import check_graph
from bitexport.errors import UnsupportedError
from bitexport.upstream import Recipe

LONGROPE = {"rope_type": "longrope", "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("architecture", "config", "message"),
    [
        ("qwen3moe", {}, "norm_topk_prob is false"),
        ("qwen3moe", {"norm_topk_prob": True}, None),
        ("qwen2moe", {"norm_topk_prob": True}, "norm_topk_prob is true"),
        ("qwen2moe", {}, None),
        ("olmoe", {"norm_topk_prob": True}, "norm_topk_prob is true"),
        ("qwen3next", {}, None),
        ("qwen3next", {"text_config": {"norm_topk_prob": False}}, "norm_topk_prob is false"),
        ("smollm3", {"num_hidden_layers": 4}, None),
        ("smollm3", {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]}, None),
        ("smollm3", {"num_hidden_layers": 2, "no_rope_layers": [1, 0]}, "no_rope_layers is [1, 0]"),
        ("smollm3", {"num_hidden_layers": 2, "no_rope_layer_interval": 2}, "no_rope_layers is [1, 0]"),
        ("minicpm", {"max_position_embeddings": 64, "rope_scaling": LONGROPE}, None),
        (
            "minicpm",
            {"max_position_embeddings": 128, "rope_scaling": LONGROPE},
            "max_position_embeddings is 128",
        ),
        ("llama", {"norm_topk_prob": True, "no_rope_layers": [0]}, None),
    ],
)
def test_settings_that_the_graph_does_not_read(
    architecture: str, config: dict[str, Any], message: str | None
) -> None:
    recipe = Recipe(
        architecture=architecture,
        class_name="Model",
        metadata={},
        strings={},
        tokens=0,
        padded=0,
        unknown_pre=False,
        no_vocabulary=None,
        blocks=int(config.get("num_hidden_layers", 1)),
        filtered=(),
        tensors=(),
        left_out=(),
        notes=(),
    )
    if message is None:
        check_graph(config, recipe)
        return
    with pytest.raises(UnsupportedError, match=re.escape(message)):
        check_graph(config, recipe)
