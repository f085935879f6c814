"""Tiny random ternary checkpoints of architectures that only llama.cpp's own converter knows.

Each is a model of transformers, built from its configuration and saved by ``save_pretrained``, whose linear
layers are then made ternary. Every value is a float16 number, so that no type of a GGUF file rounds it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

from bitexport.checkpoint.packings import ONLINE
from tests.support.tiny_models import write_tokenizer

COMMON = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
DEEPSEEK = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
LINEAR_ATTENTION = {
    "head_dim": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "layer_types": ["linear_attention", "full_attention"],
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + number / 64 for number in range(32)],
    "long_factor": [2.0 + number / 16 for number in range(32)],
    "original_max_position_embeddings": 128,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}

#: Tensors that are never ternary: what transformers' BitNet integration finds no ``nn.Linear`` for.
NEVER = (
    r"norm|embed|lm_head|conv1d|\.conv\.|A_log|\.D$|dt_bias|mlp\.gate\.|mlp\.gate\.wg|shared_expert_gate|router"
    r"|feed_forward\.gate\.|e_score_correction|block_sparse_moe\.gate\.|\.bias$"
)


@dataclass(frozen=True)
class Model:
    """One architecture.

    Attributes:
        model_class: the class of transformers whose weights are saved.
        graph: the GGUF architecture that is expected.
        config: entries of the configuration.
        without: entries of :data:`COMMON` that the configuration does not have.
        architecture: its name in config.json, if it is another one.
        saved: entries of config.json that the class does not know; None removes one.
        group: how many neighbouring weights of a row share a scale; None if the whole tensor does.
        keep: a regular expression for further tensors that stay float.
        rename: changes a tensor's name on saving; None drops the tensor.
    """

    model_class: str
    graph: str
    config: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    architecture: str | None = None
    saved: Mapping[str, Any] = field(default_factory=dict)
    group: int | None = None
    keep: str | None = None
    rename: Callable[[str], str | None] = str


MODELS = {
    "Mistral, sliding window": Model("MistralForCausalLM", "llama", {"sliding_window": 64}),
    "Mistral, linear RoPE": Model(
        "MistralForCausalLM",
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
    ),
    "MiniCPM (BitCPM4), longrope": Model(
        "LlamaForCausalLM",
        "minicpm",
        architecture="MiniCPMForCausalLM",
        group=128,
        saved={
            "model_type": "minicpm",
            "scale_emb": 12,
            "scale_depth": 1.4,
            "dim_model_base": 256,
            "rope_parameters": None,
            "rope_theta": 10000.0,
            # as published: llama.cpp's graph lacks the factor of attention for a longer context
            "rope_scaling": {**LONGROPE, "original_max_position_embeddings": 256},
        },
    ),
    "Qwen2-MoE": Model(
        "Qwen2MoeForCausalLM", "qwen2moe", {**EXPERTS, "shared_expert_intermediate_size": 256}
    ),
    # as in the published models; llama.cpp's graph normalizes the weights of the chosen experts in any case
    "Qwen3-MoE": Model(
        "Qwen3MoeForCausalLM", "qwen3moe", {**EXPERTS, "head_dim": 64, "norm_topk_prob": True}
    ),
    "Qwen3, YaRN": Model("Qwen3ForCausalLM", "qwen3", {"head_dim": 64, "rope_parameters": YARN}),
    "Qwen3-Next": Model(
        "Qwen3NextForCausalLM",
        "qwen3next",
        {**EXPERTS, **LINEAR_ATTENTION, "shared_expert_intermediate_size": 256},
    ),
    "Qwen3.5": Model("Qwen3_5ForCausalLM", "qwen35", LINEAR_ATTENTION, group=64),
    # every fourth layer is without RoPE, whatever config.json says, in llama.cpp's graph
    "SmolLM3 (NoPE layers)": Model("SmolLM3ForCausalLM", "smollm3", {"num_hidden_layers": 4}),
    "Phi-3, longrope": Model("Phi3ForCausalLM", "phi3", {"rope_parameters": LONGROPE}),
    "OLMo": Model("OlmoForCausalLM", "olmo"),
    "OLMo-2": Model("Olmo2ForCausalLM", "olmo2"),
    "Gemma-3 text": Model(
        "Gemma3ForCausalLM",
        "gemma3",
        # llama.cpp's converter cuts the embeddings to the tokenizer's size
        {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 64, "vocab_size": 400},
    ),
    "HunYuan-MoE": Model(
        "HunYuanMoEV1ForCausalLM",
        "hunyuan-moe",
        {"num_experts": 4, "moe_topk": 2, "head_dim": 64},
        # lists, as in tencent/Hunyuan-A13B-Instruct
        saved={"moe_topk": [2, 2], "moe_intermediate_size": [512, 512], "num_shared_expert": [1, 1]},
    ),
    "GLM-4": Model("Glm4ForCausalLM", "glm4", {"head_dim": 64}),
    "GLM-4-MoE": Model(
        "Glm4MoeForCausalLM",
        "glm4moe",
        {**DEEPSEEK, "head_dim": 64},
    ),
    "Mixtral": Model("MixtralForCausalLM", "llama", {"num_local_experts": 4}),
    "DeepSeek-V2 (MLA)": Model(
        "DeepseekV2ForCausalLM",
        "deepseek2",
        {
            **DEEPSEEK,
            "num_key_value_heads": 4,
            "q_lora_rank": 128,
            "kv_lora_rank": 128,
            "qk_rope_head_dim": 32,
            "qk_nope_head_dim": 32,
            "v_head_dim": 32,
        },
    ),
    "Apertus": Model("ApertusForCausalLM", "apertus", keep=r"\.act_fn\."),
    "Falcon-H1": Model(
        "FalconH1ForCausalLM",
        "falcon-h1",
        {
            "head_dim": 64,
            "mamba_d_ssm": 256,
            "mamba_n_heads": 4,
            "mamba_d_head": 64,
            "mamba_d_state": 16,
        },
    ),
    "Mamba-2": Model(
        "Mamba2ForCausalLM",
        "mamba2",
        {"state_size": 16, "expand": 2, "num_heads": 8, "head_dim": 64, "n_groups": 1},
    ),
    "Mamba": Model(
        "MambaForCausalLM",
        "mamba",
        {"state_size": 16, "expand": 2, "time_step_rank": 16},
        keep=r"x_proj|dt_proj",
    ),
}


def made(name: str, folder: Path) -> tuple[Path, Path, set[str]]:
    """Save a model twice: as a ternary checkpoint and, without a word about that, as a float one.

    Returns:
        The folders of both, which have the same name, and the names of the ternary tensors.
    """
    model = MODELS[name]
    torch.manual_seed(0)
    model_class = getattr(transformers, model.model_class)
    entries = {key: value for key, value in COMMON.items() if key not in model.without}
    built = model_class(model_class.config_class(**{**entries, **model.config}))
    ternary, plain = folder / "ternary" / "checkpoint", folder / "float" / "checkpoint"
    built.save_pretrained(ternary)
    weights = load_file(ternary / "model.safetensors")
    chosen = set()
    saved = {}
    for number, (source, value) in enumerate(weights.items()):
        target = model.rename(source)
        if target is None:
            continue
        if is_ternary(model, source, value):
            chosen.add(target)
            saved[target] = random_ternary(tuple(value.shape), number, model.group)
        else:
            noise = torch.randn(value.shape) * 0.1 + (1 if "norm" in source else 0)
            saved[target] = (
                value if re.search(r"A_log|dt_bias|dt_proj\.bias", source) else noise.half().float()
            )
    config = json.loads((ternary / "config.json").read_text())
    config["architectures"] = [model.architecture or model.model_class]
    config |= model.saved
    config = {key: value for key, value in config.items() if key not in model.saved or value is not None}
    for place in (ternary, plain):
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").write_text(json.dumps(config))
        save_file(saved, place / "model.safetensors", metadata={"format": "pt"})
        write_tokenizer(place)
    return ternary, plain, chosen


def is_ternary(model: Model, name: str, value: torch.Tensor) -> bool:
    """Whether a tensor is the weight of a linear layer in a block."""
    never = NEVER if model.keep is None else f"{NEVER}|{model.keep}"
    return value.ndim in (2, 3) and ".layers." in name and not re.search(never, name)


def random_ternary(shape: tuple[int, ...], seed: int, group: int | None) -> torch.Tensor:
    """Values -a, 0 and a, with an a for each group of columns that float16 holds; others for another seed."""
    generator = np.random.default_rng(seed)
    trits = generator.integers(-1, 2, shape).astype(np.float32)
    if group is None:
        return torch.from_numpy(trits * scale_of(seed))
    scales = [scale_of(int(each)) for each in generator.integers(0, 21, math.prod(shape) // group)]
    return torch.from_numpy((trits.reshape(-1, group) * np.array(scales)[:, None]).reshape(shape))


def scale_of(number: int) -> np.float32:
    """One of 21 scales."""
    return np.float32(2.0 ** -(3 + number % 3) * (1 + (number % 7) / 8))


def as_master(folder: Path, keep: tuple[str, ...] = ("lm_head",)) -> None:
    """Give a ternary checkpoint master weights: noise on the trits, and a quantization_config."""
    weights = load_file(folder / "model.safetensors")
    for name, value in weights.items():
        if value.ndim == 2 and len(torch.unique(value.abs())) <= 2:
            weights[name] = value + torch.randn(value.shape) * value.abs().max() * 0.2
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {**ONLINE, "modules_to_not_convert": list(keep)}
    (folder / "config.json").write_text(json.dumps(config))
