"""Tiny random embedding models, saved as Microsoft publishes bitnet-embeddings: names, config and files.

No head and no prefix ``model.``, a norm in front of each linear layer under ``.norm.weight``, and no
quantization_config; beside them the files of sentence-transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, normalizers, processors

from tests.support.tiny_models import (
    Shape,
    save_checkpoint,
    tiny_model,
    tiny_sentencepiece,
    tiny_tokenizer,
)

#: q is wider than hidden in both, as published.
SHAPE = Shape(hidden=128, ffn=256, layers=2, heads=4, kv_heads=2, vocab=512, context=256)

#: By the architecture in config.json: the class, and entries of config.json.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3Model": ("qwen3", {"head_dim": 64, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "Gemma3TextModel": (
        "gemma3",
        {
            "head_dim": 64,
            "query_pre_attn_scalar": 64,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
}

PROMPTS = {"query": "Instruct: Find the line of code\nQuery: ", "document": ""}

DOCUMENTS = [
    "def add(left, right):\n    return left + right\n",
    "for index in range(10):\n    print(index, 'items')\n",
    "The quick brown fox jumps over the lazy dog.",
    "class Example:\n    def __init__(self, value=None):\n        self.value = value\n",
    "It's 1234 o'clock, isn't it?",
    "print('lazy dog' if value else 1234)",
]
QUERIES = [
    "a fox and a dog",
    "add two numbers",
    "what time is it",
    "a class with a value",
    "a loop over items",
]


def published_name(name: str) -> str:
    """A tensor's name in Microsoft's files, from that in transformers' class with a head."""
    return name.removeprefix("model.").replace(".rms_norm.", ".norm.")


def embedding_checkpoint(
    folder: Path,
    architecture: str = "Qwen3Model",
    *,
    pooling: str | None = "lasttoken",
    normalize: bool = True,
    prompts: Mapping[str, str] = PROMPTS,
    config: Mapping[str, Any] = {},
    input_norms: bool = True,
) -> Path:
    """Save a random model.

    Args:
        pooling: sentence-transformers' name for it, ``mean_tokens``, ``cls_token`` or ``lasttoken``; None
            leaves its files out.
        config: further entries of config.json.
        input_norms: put a norm in front of each linear layer.
    """
    kind, entries = MODELS[architecture]
    model = tiny_model(SHAPE, architecture=kind, input_norms=input_norms, **{**entries, **config})
    save_checkpoint(
        model,
        folder,
        # without the norms nothing says that the layers are quantized, so their weights must be ternary
        "master" if input_norms else "pre-dequantized",
        dtype=torch.bfloat16,
        tokenizer=None,
        rename=published_name,
        config_changes={"architectures": [architecture], "quantization_config": None},
    )
    write_embedding_tokenizer(folder, gemma=kind == "gemma3")
    if pooling is not None:
        write_sentence_transformers(folder, pooling, normalize=normalize, prompts=prompts)
    return folder


def write_embedding_tokenizer(folder: Path, *, gemma: bool) -> None:
    """A tokenizer that adds the end of text, like those of the published models."""
    if gemma:
        tokenizer = Tokenizer.from_str(tiny_sentencepiece().to_str())
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        ends = [("<s>", 1), ("</s>", 2)]
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
        special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    else:
        tokenizer = Tokenizer.from_str(tiny_tokenizer(kind="qwen2").to_str())
        end = "<|end_of_text|>"
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, tokenizer.token_to_id(end))]
        )
        # as Qwen3's: the end of a text is not the end of a turn
        special = {"eos_token": "<|pad|>", "pad_token": end}
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special})
    )


def write_sentence_transformers(
    folder: Path, pooling: str, *, normalize: bool = True, prompts: Mapping[str, str] = PROMPTS
) -> None:
    """The files that sentence-transformers saves beside a model."""
    kinds = ["Transformer", "Pooling"] + ["Normalize"] * normalize
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": "" if index == 0 else f"{index}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    known = (
        "cls_token",
        "mean_tokens",
        "max_tokens",
        "mean_sqrt_len_tokens",
        "weightedmean_tokens",
        "lasttoken",
    )
    chosen = {f"pooling_mode_{name}": name == pooling for name in known}
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": SHAPE.hidden, **chosen, "include_prompt": True})
    )
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": dict(prompts), "default_prompt_name": None, "similarity_fn_name": "cosine"})
    )
