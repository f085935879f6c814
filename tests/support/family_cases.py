"""The test cases of the families: a tiny random model of transformers, and how it is saved.

test_families_run.py runs them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.support.tiny_models import Shape, save_checkpoint, tiny_model

EVEN = Shape()
#: q is wider than hidden, as in Qwen3-0.6B.
WIDE_HEADS = Shape(hidden=128, ffn=256, heads=4, kv_heads=2)
#: Rows that do not begin at an I2_S block.
ODD = Shape(hidden=160, ffn=432, heads=5, kv_heads=1)
#: 1bitLLM's 3B at an eighth of its width: heads of 100, and rows of 1080, not a multiple of 128 (as 8640).
SMALL_3B = Shape(hidden=400, ffn=1080, heads=4, kv_heads=4)

#: As written by transformers 4.
OLD_ROPE = {"rope_parameters": None, "rope_theta": 20000.0, "rope_scaling": None}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
#: From HY-MT1.5's config.json.
ALPHA = {
    "rope_parameters": None,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "alpha": 1000.0,
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.0,
        "type": "dynamic",
    },
}

#: A window shorter than the prompt, and a scale that does not follow from head_dim.
GEMMA3 = {
    "head_dim": 64,
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 48,
    "final_logit_softcapping": 30.0,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 30000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    },
}
#: As written by transformers 4 for Google's first files.
OLD_GEMMA3 = {
    "rope_parameters": None,
    "layer_types": None,
    "final_logit_softcapping": None,
    "rope_theta": 30000.0,
    "rope_local_base_freq": 500.0,
    "sliding_window_pattern": 2,
}


def sequential(name: str) -> str:
    """The spelling of projects that put a Sequential of norm and linear layer in place of the linear one."""
    name = re.sub(r"(o_proj|down_proj)\.", r"\1.1.", name)
    name = name.replace("self_attn.attn_sub_norm", "self_attn.o_proj.0")
    return name.replace("mlp.ffn_sub_norm", "mlp.down_proj.0")


def one_bit_llm(name: str) -> str:
    return name.replace("attn_sub_norm", "inner_attn_ln").replace("ffn_sub_norm", "ffn_layernorm")


@dataclass(frozen=True)
class Case:
    """A model, how it is saved, and the graph that must run it."""

    architecture: str
    graph: str = "bitnet-b1.58"
    packing: str = "master"
    shape: Shape = EVEN
    tied: bool = True
    model: Mapping[str, Any] = field(default_factory=dict)
    rename: Callable[[str], str] = str
    quantization: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


SILU = {"hidden_act": "silu"}
INPUT_NORMS = {"input_norms": True}
USE_RMS_NORM = {"use_rms_norm": True, "rms_norm_eps": 1e-3}
ONEBITLLM = Case(
    "1bitllm",
    "bitnet",
    rename=one_bit_llm,
    config={"architectures": ["BitnetForCausalLM"], "quantization_config": None, "weight_bits": 1},
)

CASES = {
    "2B4T": Case("bitnet", tied=False),
    "2B4T with a bias": Case("bitnet", model={"attention_bias": True}),
    "BitNet without SubLN": Case("bitnet without SubLN", packing="packed-multiply"),
    "2B4T with use_rms_norm": Case("bitnet", model=INPUT_NORMS, quantization=USE_RMS_NORM),
    "1bitLLM": ONEBITLLM,
    "1bitLLM 3B": replace(ONEBITLLM, shape=SMALL_3B),
    "Llama": Case("llama", "llama", "packed-divide", tied=False),
    "Llama, pre-dequantized": Case("llama", "llama", "pre-dequantized"),
    "Llama, rows of an odd width": Case("llama", "llama", "packed-multiply", ODD),
    "Llama with use_rms_norm": Case(
        "llama", model=INPUT_NORMS, quantization=USE_RMS_NORM, packing="packed-divide"
    ),
    "Llama with norms of Microsoft's spelling": Case(
        "llama", model=INPUT_NORMS, rename=lambda name: name.replace(".rms_norm.", ".norm.")
    ),
    "Llama with biases": Case("llama", tied=False, model={"attention_bias": True, "mlp_bias": True}),
    "Llama student": Case("llama-student", packing="packed-multiply", tied=False),
    "Llama student, llama3 rope": Case("llama-student", config={"rope_parameters": LLAMA3}),
    "Llama student, saved as BitNet": Case("bitnet", model={**SILU, "rope_theta": 10000.0}),
    "SmolLM2 student, odd, sequential": Case("llama-student", shape=ODD, rename=sequential, config=OLD_ROPE),
    "sequential and packed": Case("llama-student", packing="packed-divide", rename=sequential),
    "Qwen2.5 student": Case("qwen2-student"),
    "Qwen2.5 student, packed-multiply": Case("qwen2-student", packing="packed-multiply", tied=False),
    "Qwen2.5 student, packed-divide": Case("qwen2-student", packing="packed-divide", config=OLD_ROPE),
    "Qwen3 student": Case("qwen3-student", shape=WIDE_HEADS, model={"head_dim": 64}),
    "Qwen3 student, untied, packed": Case(
        "qwen3-student", packing="packed-multiply", shape=WIDE_HEADS, model={"head_dim": 64}, tied=False
    ),
    "Qwen3 without SubLN": Case("qwen3", packing="pre-dequantized", model={"head_dim": 64}, config=OLD_ROPE),
    "Qwen3 student with use_rms_norm and float layers": Case(
        "qwen3-student",
        model={"head_dim": 64, **INPUT_NORMS},
        quantization={
            **USE_RMS_NORM,
            "modules_to_not_convert": ["layers.0.mlp.up_proj", "o_proj", "lm_head"],
        },
    ),
    "Gemma 3 with use_rms_norm": Case(
        "gemma3", "gemma3", model={**GEMMA3, **INPUT_NORMS}, quantization=USE_RMS_NORM
    ),
    "Gemma 3 student": Case(
        "gemma3-student", "gemma3", "packed-multiply", WIDE_HEADS, model=GEMMA3, config=OLD_GEMMA3
    ),
    "HunYuan student": Case("hunyuan-student", model={"head_dim": 64}, config=ALPHA),
    "HunYuan student, packed": Case(
        "hunyuan-student", packing="packed-divide", model={"head_dim": 64}, tied=False
    ),
}


def made(case: Case, folder: Path) -> Path:
    """The checkpoint of a case."""
    model = tiny_model(case.shape, architecture=case.architecture, tied=case.tied, **case.model)
    return save_checkpoint(
        model,
        folder / "checkpoint",
        case.packing,
        rename=case.rename,
        quantization=case.quantization,
        config_changes=case.config,
        # transformers always uses this pre-tokenizer for Qwen2, regardless of tokenizer.json
        tokenizer="qwen2" if case.architecture.startswith("qwen2") else "gpt2",
    )
