#!/usr/bin/env python3
"""Write a checkpoint with the shape of BitNet b1.58 2B4T and random trits: 1.18 GB to measure speed with.

    python benchmarks/make_2b4t_checkpoint.py ckpt
    bitexport convert ckpt 2b.gguf

With ``--master``, the linear layers are bfloat16 master weights from a normal distribution: 4.83 GB.

The packing is Microsoft's (offline, autobitlinear): the trits -1, 0 and +1 are equally likely, with one
bfloat16 scale per tensor; the bfloat16 embeddings are also the head. The output is noise, but sizes and value
ranges are realistic. No tensor is completely in memory, and the same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import struct
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from bitexport.tokenizer.pre_tokenizer import LLAMA3_SPLIT

HIDDEN, FFN, HEADS, KV_HEADS, VOCAB = 2560, 6912, 20, 5, 128256
HEAD_DIM = HIDDEN // HEADS
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"

#: The 81 bytes that encode four trits
FOUR_TRITS = np.array([b for b in range(256) if all(b >> shift & 3 != 3 for shift in (0, 2, 4, 6))], np.uint8)
CHUNK = 16 * 1024 * 1024


@dataclass(frozen=True)
class Tensor:
    """A tensor to write: its safetensors dtype, and the kind of its values, see :func:`data`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: str

    @property
    def count(self) -> int:
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        return self.count * (1 if self.dtype == "U8" else 2)


def tensors(layers: int, master: bool) -> list[Tensor]:
    """All tensors, in the order in which they are written."""
    found = [Tensor("model.embed_tokens.weight", "BF16", (VOCAB, HIDDEN), "embedding")]
    linear = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (FFN, HIDDEN),
        "mlp.up_proj": (FFN, HIDDEN),
        "mlp.down_proj": (HIDDEN, FFN),
    }
    norms = {
        "input_layernorm": HIDDEN,
        "post_attention_layernorm": HIDDEN,
        "self_attn.attn_sub_norm": HIDDEN,
        "mlp.ffn_sub_norm": FFN,
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for name, (rows, columns) in linear.items():
            if master:
                found.append(Tensor(f"{prefix}.{name}.weight", "BF16", (rows, columns), "master"))
                continue
            found.append(Tensor(f"{prefix}.{name}.weight", "U8", (rows // 4, columns), "trits"))
            found.append(Tensor(f"{prefix}.{name}.weight_scale", "BF16", (1,), "scale"))
        for name, size in norms.items():
            found.append(Tensor(f"{prefix}.{name}.weight", "BF16", (size,), "norm"))
    return [*found, Tensor("model.norm.weight", "BF16", (HIDDEN,), "norm")]


def data(tensor: Tensor, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """A tensor's values in chunks; bfloat16 as the upper 16 bits of float32."""
    for start in range(0, tensor.count, CHUNK):
        size = min(CHUNK, tensor.count - start)
        if tensor.kind == "trits":
            yield FOUR_TRITS[rng.integers(0, len(FOUR_TRITS), size, dtype=np.uint8)]
            continue
        if tensor.kind == "embedding":
            values = rng.standard_normal(size, dtype=np.float32) * np.float32(0.7)
        elif tensor.kind == "master":
            values = rng.standard_normal(size, dtype=np.float32) * np.float32(0.02)
        elif tensor.kind == "norm":
            values = rng.uniform(0.8, 1.2, size).astype(np.float32)
        else:
            # two thirds of the trits are not zero: this scale preserves the variance over a row of 2560
            values = (rng.uniform(0.9, 1.1, size) / np.sqrt(2560 * 2 / 3)).astype(np.float32)
        yield (values.view(np.uint32) >> 16).astype("<u2")


def write_shard(path: Path, chosen: list[Tensor], rng: np.random.Generator) -> None:
    """Write one safetensors file."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in chosen:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for tensor in chosen:
            for piece in data(tensor, rng):
                file.write(piece.tobytes())


def write_weights(folder: Path, layers: int, shards: int, seed: int, master: bool) -> int:
    """Write all tensors to ``shards`` files of about the same size; returns their bytes."""
    rng = np.random.default_rng(seed)
    everything = tensors(layers, master)
    total = sum(tensor.nbytes for tensor in everything)
    groups: list[list[Tensor]] = [[] for _ in range(shards)]
    done = 0
    for tensor in everything:
        groups[min(shards - 1, done * shards // total)].append(tensor)
        done += tensor.nbytes
    groups = [group for group in groups if group]
    if len(groups) == 1:
        write_shard(folder / "model.safetensors", groups[0], rng)
        return total
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups, start=1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        write_shard(folder / name, group, rng)
        weight_map.update({tensor.name: name for tensor in group})
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return total


def write_tokenizer(folder: Path) -> None:
    """Write a small byte-level BPE tokenizer with Llama 3's pre-tokenizer, trained on Python's library."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:60]
    tokenizer.train([str(source) for source in sources], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def write_config(folder: Path, layers: int, master: bool) -> None:
    config = {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        "hidden_act": "relu2",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCAB,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "dtype": "bfloat16",
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "online" if master else "offline",
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder to write, which may exist")
    parser.add_argument("--layers", type=int, default=30, help="decoder layers (default 30, as 2B4T has)")
    parser.add_argument("--shards", type=int, default=1, help="safetensors files (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default 0)")
    parser.add_argument("--master", action="store_true", help="master weights instead of packed ones")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, arguments.layers, arguments.master)
    write_tokenizer(folder)
    total = write_weights(
        folder, arguments.layers, max(1, arguments.shards), arguments.seed, arguments.master
    )
    print(f"{folder}: {total / 1e9:.2f} GB of tensors, {arguments.layers} layers")


if __name__ == "__main__":
    main()
