"""Tiny random ternary checkpoints in every packing, created with transformers and saved in its format.

The same weights can be saved as master weights, packed with autobitlinear, and packed with bitlinear, so that
all three give the same trits and the same scale to the last bit.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    BitNetForCausalLM,
    Gemma3ForCausalLM,
    HunYuanDenseV1ForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from bitexport.reference.norms import with_sub_norms, without_sub_norms
from bitexport.tokenizer.pre_tokenizer import LLAMA3_SPLIT, QWEN2_SPLIT

PACKINGS = ("master", "packed-multiply", "packed-divide")

#: The class of transformers for each ``architecture``; "-student" adds SubLN.
MODEL_CLASSES = {
    "bitnet": BitNetForCausalLM,
    "bitnet without SubLN": BitNetForCausalLM,
    "gemma3": Gemma3ForCausalLM,
    "gemma3-student": Gemma3ForCausalLM,
    "llama": LlamaForCausalLM,
    "llama-student": LlamaForCausalLM,
    "1bitllm": LlamaForCausalLM,
    "qwen2": Qwen2ForCausalLM,
    "qwen2-student": Qwen2ForCausalLM,
    "qwen3": Qwen3ForCausalLM,
    "qwen3-student": Qwen3ForCausalLM,
    "hunyuan": HunYuanDenseV1ForCausalLM,
    "hunyuan-student": HunYuanDenseV1ForCausalLM,
}

QUANTIZATION = {
    "master": {"linear_class": "autobitlinear", "quantization_mode": "online"},
    "packed-multiply": {"linear_class": "autobitlinear", "quantization_mode": "offline"},
    "packed-divide": {"linear_class": "bitlinear", "quantization_mode": "offline"},
}

TERNARY_SUFFIXES = tuple(
    f"{module}.weight"
    for module in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
)

TEXT = [
    "def add(left, right):\n    return left + right\n",
    "for index in range(10):\n    print(index, 'items')\n",
    "The quick brown fox jumps over the lazy dog. It's 1234 o'clock, isn't it?",
    "class Example:\n    '''A docstring.'''\n\n    def __init__(self, value=None):\n        self.value = "
    "value\n",
    "Съешь ещё этих мягких французских булок 敏捷的棕色狐狸 いろは 👩‍👩‍👧‍👦",
] * 4


@dataclass(frozen=True)
class Shape:
    """The size of a tiny model. ``hidden`` is heads x head_dim."""

    hidden: int = 256
    ffn: int = 512
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    vocab: int = 512
    context: int = 256


@functools.cache
def tiny_tokenizer(size: int = 400, kind: str = "gpt2") -> Tokenizer:
    """A byte-level BPE tokenizer trained on a few lines, with bos, eos, pad and an added non-special token.

    ``kind`` is the pre-tokenizer: ``gpt2``, ``smollm`` (single digits), ``qwen2``, ``llama3`` (with
    ``ignore_merges``) or ``smaug`` (without).
    """
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    if kind in ("gpt2", "smollm"):
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        if kind == "smollm":
            digits = pre_tokenizers.Digits(individual_digits=True)
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, tokenizer.pre_tokenizer])
    else:
        split = pre_tokenizers.Split(Regex(QWEN2_SPLIT if kind == "qwen2" else LLAMA3_SPLIT), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,
        special_tokens=["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    bos = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A",
                pair="<|begin_of_text|> $A <|begin_of_text|> $B",
                special_tokens=[("<|begin_of_text|>", bos)],
            ),
        ]
    )
    return tokenizer


@functools.cache
def tiny_sentencepiece(size: int = 480) -> Tokenizer:
    """A tokenizer like Llama 2's: spaces become a mark, and characters without a token become bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special + [f"<0x{value:02X}>" for value in range(256)],
        show_progress=False,
        max_token_length=6,
    )
    ascii_only = ["".join(c for c in line if c.isascii()) for line in TEXT]
    pieces = [part for line in ascii_only for part in line.replace(" ", " ▁").split()]
    tokenizer.train_from_iterator(pieces, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    # the trainer marks all given tokens as special, but byte tokens are not
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][: len(special)]
    return Tokenizer.from_str(json.dumps(content))


def write_tokenizer(folder: Path, kind: str = "gpt2", size: int = 400) -> None:
    """Write a tokenizer's files as transformers 5 does; ``kind`` may also be ``llama2``."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "llama2":
        tiny_sentencepiece().save(str(folder / "tokenizer.json"))
        ends = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **ends,
            "clean_up_tokenization_spaces": False,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return
    tiny_tokenizer(size, kind).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<|begin_of_text|>",
                "eos_token": "<|end_of_text|>",
                "pad_token": "<|pad|>",
                "clean_up_tokenization_spaces": False,
                "model_max_length": 256,
                "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
            }
        )
    )


def tiny_model(
    shape: Shape = Shape(),
    *,
    architecture: str = "bitnet",
    tied: bool = True,
    seed: int = 0,
    input_norms: bool = False,
    **config: Any,
) -> PreTrainedModel:
    """A random float32 model. Norms are not 1 and biases not 0, so that a missing one is noticed.

    Args:
        architecture: one of :data:`MODEL_CLASSES`.
        input_norms: add an ``rms_norm`` in front of each linear layer, as ``use_rms_norm`` does.
        config: further entries of config.json.
    """
    torch.manual_seed(seed)
    common = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": shape.context,
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    model_class = MODEL_CLASSES[architecture]
    if architecture.endswith("-student") or architecture == "1bitllm":
        model_class = with_sub_norms(model_class)
    if architecture == "bitnet without SubLN":
        model_class = without_sub_norms(model_class)
    model: PreTrainedModel = model_class(model_class.config_class(**{**common, **config}))
    if input_norms:
        for module in model.model.layers.modules():
            if isinstance(module, torch.nn.Linear):
                module.rms_norm = LlamaRMSNorm(module.in_features)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.split(".")[-2]:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith(("embed_tokens.weight", "lm_head.weight")):
                # float16 holds them exactly, so that --embed-type f16 loses nothing
                parameter.normal_(0, 0.5).copy_(parameter.half())
            elif name.endswith(".bias"):
                parameter.normal_(0, 0.5)
            else:
                parameter.normal_(0, 0.05)
    return model.eval()


def stable_master(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.float32]:
    """A float32 matrix whose absmean m equals ``1 / (1 / m)``, its trits, and m.

    The matrix is rescaled slightly until it does, so that the three packings agree to the last bit.
    """
    for step in range(200):
        candidate = (weight * np.float32(1 + step / 4096)).astype(np.float32)
        mean = np.float32(np.abs(candidate).sum(dtype=np.float64) / candidate.size)
        if np.float32(1) / (np.float32(1) / mean) == mean:
            trits = np.clip(np.rint(candidate * (np.float32(1) / mean)), -1, 1).astype(np.int8)
            return candidate, trits, mean
    raise AssertionError("no stable scale found")


def pack_two_bit(trits: np.ndarray) -> np.ndarray:
    """transformers' packed bytes, by description: row k * (out / 4) + r is in bits 2k+1..2k of row r."""
    quarter = trits.shape[0] // 4
    packed = np.zeros((quarter, trits.shape[1]), dtype=np.uint8)
    for k in range(4):
        packed += (trits[k * quarter : (k + 1) * quarter] + 1).astype(np.uint8) * np.uint8(4**k)
    return packed


def save_checkpoint(
    model: PreTrainedModel,
    folder: Path,
    packing: str = "master",
    *,
    dtype: torch.dtype = torch.float32,
    shards: int = 1,
    tokenizer: str | None = "gpt2",
    tokenizer_size: int = 400,
    rename: Callable[[str], str] = str,
    quantization: Mapping[str, Any] = {},
    config_changes: Mapping[str, Any] = {},
) -> Path:
    """Save a model of :func:`tiny_model` in one of :data:`PACKINGS`, or "pre-dequantized".

    Args:
        dtype: the dtype of everything except ternary weights and scales, which stay float32 or uint8.
        rename: changes the spelling of tensor names.
        quantization: further entries of quantization_config.
        config_changes: entries of config.json; None removes one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    kept = quantization.get("modules_to_not_convert") or []
    for name, value in model.state_dict().items():
        float_layer = any(part in name for part in kept)
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if name.endswith(".rms_norm.weight") and float_layer:
            continue  # transformers adds no norm in front of these
        if name.endswith(TERNARY_SUFFIXES) and not float_layer:
            master, trits, mean = stable_master(value.numpy())
            if packing in ("master", "pre-dequantized"):
                tensors[name] = torch.from_numpy(master if packing == "master" else trits * mean)
                continue
            tensors[name] = torch.from_numpy(pack_two_bit(trits))
            scale = mean if packing == "packed-multiply" else np.float32(1) / mean
            tensors[name.removesuffix(".weight") + ".weight_scale"] = torch.tensor([scale])
        else:
            tensors[name] = value.to(dtype).contiguous()
    _save_sharded({rename(name): value for name, value in tensors.items()}, folder, shards)
    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    config["dtype"] = str(dtype).removeprefix("torch.")
    config["quantization_config"] = {
        "quant_method": "bitnet",
        "modules_to_not_convert": None,
        **QUANTIZATION.get(packing, {}),
        **quantization,
    }
    if packing == "pre-dequantized":
        del config["quantization_config"]
    config |= config_changes
    config = {key: value for key, value in config.items() if key not in config_changes or value is not None}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    if tokenizer is not None:
        write_tokenizer(folder, tokenizer, tokenizer_size)
    return folder


def _save_sharded(tensors: dict[str, torch.Tensor], folder: Path, shards: int) -> None:
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number in range(shards):
        # strided, so that a weight and its scale are in different shards
        chosen = names[number::shards]
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: tensors[name] for name in chosen}, str(folder / file), metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(chosen, file))
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def tiny_checkpoint(
    folder: Path,
    packing: str = "master",
    *,
    shape: Shape = Shape(),
    architecture: str = "bitnet",
    tied: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    shards: int = 1,
    tokenizer: str | None = "gpt2",
) -> Path:
    """:func:`tiny_model`, saved with :func:`save_checkpoint`."""
    model = tiny_model(shape, architecture=architecture, tied=tied, seed=seed)
    return save_checkpoint(model, folder, packing, dtype=dtype, shards=shards, tokenizer=tokenizer)
