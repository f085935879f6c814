"""The catalogue: published ternary models, from their model cards and configurations.

Only entries of config.json that decide the conversion are given. Adding a model: one entry here. The tests
build it at a small width, convert it and compare it with PyTorch; ``scripts/model_catalogue.py`` writes its
row in docs/models.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitexport.catalogue.published import PublishedModel, Storage

_PACKED_BY_DEFAULT = {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]}

_2B4T: Mapping[str, Any] = {
    "architectures": ["BitNetForCausalLM"],
    "model_type": "bitnet",
    "hidden_act": "relu2",
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "max_position_embeddings": 4096,
    "num_attention_heads": 20,
    "num_hidden_layers": 30,
    "num_key_value_heads": 5,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}


def _auto(mode: str) -> dict[str, str]:
    return {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": mode}


def _one_bit_llm(hidden: int, ffn: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "architectures": ["BitnetForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "input_bits": 8,
        "intermediate_size": ffn,
        "max_position_embeddings": 2048,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": heads,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "vocab_size": 32002,
        "weight_bits": 1,
    }


def _llama(hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, vocab: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": False,
        "vocab_size": vocab,
    }


_LLAMA3_8B: Mapping[str, Any] = {
    **_llama(4096, 14336, 32, 32, 8, 128256),
    "max_position_embeddings": 8192,
    "quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": None},
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 500000.0,
}


def _falcon3(hidden: int, ffn: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        **_llama(hidden, ffn, layers, heads, 4, 131072),
        "head_dim": 256,
        "max_position_embeddings": 32768,
        "quantization_config": _PACKED_BY_DEFAULT,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000042,
    }


def _falcon_e(ffn: int, layers: int) -> dict[str, Any]:
    return {
        **_llama(2048, ffn, layers, 16, 2, 32768),
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "quantization_config": _PACKED_BY_DEFAULT,
        "rms_norm_eps": 1e-06,
    }


def _trilm(hidden: int, ffn: int, layers: int, heads: int, vocab: int = 50304) -> dict[str, Any]:
    return {
        **_llama(hidden, ffn, layers, heads, heads, vocab),
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "torch_dtype": "float16",
    }


def _bonsai(hidden: int, ffn: int, layers: int, heads: int, *, tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "max_position_embeddings": 32768,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000,
        "tie_word_embeddings": tied,
        "torch_dtype": "float16",
        "vocab_size": 151936,
    }


_MLX_2BIT = {"quantization": {"group_size": 128, "bits": 2}}

_BITCPM: Mapping[str, Any] = {
    "architectures": ["MiniCPMForCausalLM"],
    "model_type": "minicpm",
    "dim_model_base": 256,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "max_position_embeddings": 32768,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "scale_depth": 1.4,
    "scale_emb": 12,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 73448,
}

_HY_MT: Mapping[str, Any] = {
    "architectures": ["HunYuanDenseV1ForCausalLM"],
    "model_type": "hunyuan_v1_dense",
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 262144,
    "num_attention_heads": 16,
    "num_hidden_layers": 32,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"alpha": 1000.0, "factor": 1.0, "type": "dynamic"},
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_qk_norm": True,
    "vocab_size": 120818,
}


_EMBEDDING_0_6B: Mapping[str, Any] = {
    "architectures": ["Qwen3Model"],
    "model_type": "qwen3",
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 32768,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
    "vocab_size": 151669,
}

_EMBEDDING_270M: Mapping[str, Any] = {
    "architectures": ["Gemma3TextModel"],
    "model_type": "gemma3_text",
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 640,
    "intermediate_size": 2048,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "sliding_window": 512,
    "tie_word_embeddings": True,
    "vocab_size": 262144,
}


def _bitnet(repository: str, storage: Storage, mode: str) -> PublishedModel:
    return PublishedModel(
        repository=repository,
        config={**_2B4T, "quantization_config": _auto(mode)},
        storage=storage,
        tokenizer="llama-bpe",
        graph="bitnet-b1.58",
        sub_norms=True,
    )


def _llama_model(
    repository: str,
    config: Mapping[str, Any],
    tokenizer: str,
    storage: Storage = Storage.PACKED_DIVIDE,
) -> PublishedModel:
    return PublishedModel(
        repository=repository,
        config=config,
        storage=storage,
        tokenizer=tokenizer,
        graph="llama",
    )


def _one_bit(size: str, hidden: int, ffn: int, layers: int, heads: int) -> PublishedModel:
    return PublishedModel(
        repository=f"1bitLLM/bitnet_b1_58-{size}",
        config=_one_bit_llm(hidden, ffn, layers, heads),
        storage=Storage.MASTER,
        tokenizer="spm",
        graph="bitnet",
        sub_norms=True,
    )


def _bonsai_model(
    size: str, config: Mapping[str, Any], storage: Storage = Storage.FLOAT_GROUPS
) -> PublishedModel:
    form = "unpacked" if storage is Storage.FLOAT_GROUPS else "mlx-2bit"
    return PublishedModel(
        repository=f"prism-ml/Ternary-Bonsai-{size}-{form}",
        config=config if storage is Storage.FLOAT_GROUPS else {**config, **_MLX_2BIT},
        storage=storage,
        tokenizer="qwen2",
        graph="bitnet-b1.58",
        ternary_embeddings=True,
    )


_BONSAI_1_7B = _bonsai(2048, 6144, 28, 16, tied=True)
_BONSAI_4B = _bonsai(2560, 9728, 36, 32, tied=True)
_BONSAI_8B = _bonsai(4096, 12288, 36, 32, tied=False)

MODELS: tuple[PublishedModel, ...] = (
    _bitnet("microsoft/bitnet-b1.58-2B-4T", Storage.PACKED_MULTIPLY, "offline"),
    _bitnet("microsoft/bitnet-b1.58-2B-4T-bf16", Storage.MASTER, "online"),
    PublishedModel(
        repository="microsoft/bitnet-embedding-0.6b",
        config=_EMBEDDING_0_6B,
        storage=Storage.MASTER,
        tokenizer="qwen2",
        graph="bitnet-b1.58",
    ),
    PublishedModel(
        repository="microsoft/bitnet-embedding-270m",
        config=_EMBEDDING_270M,
        storage=Storage.MASTER,
        tokenizer="spm",
        graph="gemma3",
    ),
    _one_bit("large", 1536, 4096, 24, 16),
    _one_bit("xl", 2048, 5460, 24, 32),
    _one_bit("3B", 3200, 8640, 26, 32),
    _llama_model("HF1BitLLM/Llama3-8B-1.58-100B-tokens", _LLAMA3_8B, "llama-bpe"),
    _llama_model("tiiuae/Falcon3-1B-Instruct-1.58bit", _falcon3(2048, 8192, 18, 8), "falcon3"),
    _llama_model("tiiuae/Falcon3-3B-Instruct-1.58bit", _falcon3(3072, 9216, 22, 12), "falcon3"),
    _llama_model("tiiuae/Falcon3-7B-Instruct-1.58bit", _falcon3(3072, 23040, 28, 12), "falcon3"),
    _llama_model("tiiuae/Falcon3-10B-Instruct-1.58bit", _falcon3(3072, 23040, 40, 12), "falcon3"),
    _llama_model("tiiuae/Falcon-E-1B-Instruct", _falcon_e(9216, 24), "falcon3"),
    _llama_model("tiiuae/Falcon-E-3B-Instruct", _falcon_e(13312, 32), "falcon3"),
    _llama_model("SpectraSuite/TriLM_99M_Unpacked", _trilm(512, 1280, 16, 8), "gpt-2", Storage.FLOAT_ROWS),
    _llama_model("SpectraSuite/TriLM_390M_Unpacked", _trilm(1024, 2560, 24, 16), "gpt-2", Storage.FLOAT_ROWS),
    _llama_model("SpectraSuite/TriLM_830M_Unpacked", _trilm(1536, 4096, 24, 24), "gpt-2", Storage.FLOAT_ROWS),
    _llama_model(
        "SpectraSuite/TriLM_1.5B_Unpacked", _trilm(2048, 6144, 24, 32, 50432), "gpt-2", Storage.FLOAT_ROWS
    ),
    _llama_model("SpectraSuite/TriLM_2.4B_Unpacked", _trilm(2304, 7680, 30, 36), "gpt-2", Storage.FLOAT_ROWS),
    _llama_model(
        "SpectraSuite/TriLM_3.9B_Unpacked", _trilm(3072, 9216, 30, 24, 50688), "gpt-2", Storage.FLOAT_ROWS
    ),
    _bonsai_model("1.7B", _BONSAI_1_7B),
    _bonsai_model("4B", _BONSAI_4B),
    _bonsai_model("8B", _BONSAI_8B),
    _bonsai_model("1.7B", _BONSAI_1_7B, Storage.MLX),
    _bonsai_model("8B", _BONSAI_8B, Storage.MLX),
    PublishedModel(
        repository="openbmb/BitCPM-CANN-0.5B",
        config=_BITCPM,
        storage=Storage.FLOAT_GROUPS,
        tokenizer="spm",
        graph="minicpm",
    ),
    PublishedModel(
        repository="AngelSlim/Hy-MT1.5-1.8B-1.25bit",
        config=_HY_MT,
        storage=Storage.FLOAT_GROUPS,
        tokenizer="hunyuan-dense",
        graph="bitnet-b1.58",
    ),
)
