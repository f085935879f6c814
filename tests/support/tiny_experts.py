"""A tiny mixture of experts as a GGUF file of floats, written by the gguf package, as upstream does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

HIDDEN, FFN, HEADS, HEAD, VOCAB = 256, 256, 4, 64, 320

#: float16 holds it, so that conversions between types are exact.
SCALE = 0.125


def qwen3_moe(
    target: Path,
    *,
    experts: int = 8,
    used: int = 2,
    layers: int = 2,
    ffn: int = FFN,
    expert_scales: bool = False,
    seed: int = 0,
) -> Path:
    """A random Qwen3-MoE whose linear layers hold -a, 0 and a in float16, and whose router holds float32.

    Args:
        target: the file to write.
        expert_scales: every expert has a scale of its own.
    """
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(target, "qwen3moe")
    _write_metadata(writer, experts=experts, used=used, layers=layers, ffn=ffn)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3MOE, layers)

    def add(name: str, values: np.ndarray, dtype: Any = np.float16) -> None:
        found = names.get_name(name, try_suffixes=(".weight",))
        assert found is not None, name
        writer.add_tensor(found, values.astype(dtype))

    def linear(*shape: int) -> np.ndarray:
        trits = random.integers(-1, 2, shape)
        scales = SCALE * (2.0 ** -(np.arange(shape[0]) % 3) if expert_scales and len(shape) == 3 else 1)
        return trits * np.reshape(scales, (-1, *[1] * (len(shape) - 1)))

    def gain(size: int) -> np.ndarray:
        return random.uniform(0.5, 1.5, size)

    add("model.embed_tokens.weight", random.standard_normal((VOCAB, HIDDEN)))
    for layer in range(layers):
        block = f"model.layers.{layer}"
        add(f"{block}.input_layernorm.weight", gain(HIDDEN), np.float32)
        add(f"{block}.post_attention_layernorm.weight", gain(HIDDEN), np.float32)
        for part, heads in (("q", HEADS), ("k", HEADS), ("v", HEADS)):
            add(f"{block}.self_attn.{part}_proj.weight", linear(heads * HEAD, HIDDEN))
        add(f"{block}.self_attn.o_proj.weight", linear(HIDDEN, HEADS * HEAD))
        add(f"{block}.self_attn.q_norm.weight", gain(HEAD), np.float32)
        add(f"{block}.self_attn.k_norm.weight", gain(HEAD), np.float32)
        # small enough that several experts get a share, so that rounding changes the shares only a little
        router = random.standard_normal((experts, HIDDEN)) / HIDDEN**0.5
        add(f"{block}.mlp.gate.weight", router, np.float32)
        add(f"{block}.mlp.experts.gate_proj.weight", linear(experts, ffn, HIDDEN))
        add(f"{block}.mlp.experts.up_proj.weight", linear(experts, ffn, HIDDEN))
        add(f"{block}.mlp.experts.down_proj.weight", linear(experts, HIDDEN, ffn))
    add("model.norm.weight", gain(HIDDEN), np.float32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _write_metadata(writer: gguf.GGUFWriter, *, experts: int, used: int, layers: int, ffn: int) -> None:
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(2)
    writer.add_block_count(layers)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(4 * HIDDEN)
    writer.add_expert_feed_forward_length(ffn)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(used)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    letters = [chr(code) for code in [*range(33, 127), *range(161, 173), *range(174, 256)]]
    tokens = [*letters, *(f"{a}{b}" for a in "abcdefghij" for b in "klmnopqrstuvwxyz")][:VOCAB]
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * VOCAB)
    writer.add_token_merges(["a k"])
    writer.add_eos_token_id(0)
