"""Small random checkpoints in the exact layout of the models in the catalogue.

config.json has the published entries with smaller sizes, tensors have the published names and storage, and
the values are random. Nothing here uses bitexport's own writers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from bitexport.catalogue import PublishedModel, Storage
from tests.support.tiny_models import pack_two_bit, stable_master, write_tokenizer
from tests.support.word_packers import mlx_affine

HIDDEN, FFN, LAYERS, VOCAB = 256, 512, 2, 512

#: A tokenizer of tiny_models.py for each pre-tokenizer in the catalogue. Those that tiny_models.py cannot
#: make are replaced by a similar one: the tokenizers themselves are tested in tests/tokenizer.
TOKENIZERS = {
    "llama-bpe": "llama3",
    "falcon3": "llama3",
    "gpt-2": "gpt2",
    "qwen2": "qwen2",
    "hunyuan-dense": "qwen2",
    "spm": "llama2",
}

#: Of every linear layer: its name, and the names of its dimensions (out, in).
LINEAR = (
    ("self_attn.q_proj", "q", "hidden"),
    ("self_attn.k_proj", "kv", "hidden"),
    ("self_attn.v_proj", "kv", "hidden"),
    ("self_attn.o_proj", "hidden", "q"),
    ("mlp.gate_proj", "ffn", "hidden"),
    ("mlp.up_proj", "ffn", "hidden"),
    ("mlp.down_proj", "hidden", "ffn"),
)


def small_config(model: PublishedModel) -> dict[str, Any]:
    """config.json of the model at a small size."""
    config = dict(model.config)
    heads = min(int(config["num_attention_heads"]), 4)
    grouped = config["num_key_value_heads"] != config["num_attention_heads"]
    config |= {
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2 if grouped else heads,
        "vocab_size": VOCAB,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    if "head_dim" in config:
        config["head_dim"] = 128 if int(config["head_dim"]) >= 128 else HIDDEN // heads
    return config


def save_published(model: PublishedModel, folder: Path, seed: int = 0) -> Path:
    """Write a checkpoint in the model's layout, with a tokenizer, and return its folder."""
    folder.mkdir(parents=True)
    config = small_config(model)
    writer = _Writer(model, config, np.random.default_rng(seed))
    save_file(dict(writer.tensors()), str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_tokenizer(folder, TOKENIZERS[model.tokenizer], size=480)
    return folder


class _Writer:
    """Makes the tensors of one checkpoint."""

    def __init__(self, model: PublishedModel, config: dict[str, Any], random: np.random.Generator) -> None:
        self._model = model
        self._config = config
        self._random = random
        self._dtype = getattr(torch, str(config.get("torch_dtype", "bfloat16")))
        heads = int(config["num_attention_heads"])
        head = int(config.get("head_dim", HIDDEN // heads))
        self._head = head
        self._sizes = {
            "hidden": HIDDEN,
            "ffn": FFN,
            "q": heads * head,
            "kv": int(config["num_key_value_heads"]) * head,
        }

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self._table("model.embed_tokens")
        for layer in range(LAYERS):
            prefix = f"model.layers.{layer}."
            for name in self._norms():
                yield f"{prefix}{name}.weight", self._norm(self._norm_size(name))
            for name, out, into in LINEAR:
                yield from self._linear(f"{prefix}{name}", self._sizes[out], self._sizes[into])
        yield "model.norm.weight", self._norm(HIDDEN)
        if not self._config["tie_word_embeddings"]:
            yield from self._table("lm_head")

    def _norms(self) -> list[str]:
        names = ["input_layernorm", "post_attention_layernorm"]
        architecture = self._model.architecture
        if architecture == "BitnetForCausalLM":
            names += ["self_attn.inner_attn_ln", "mlp.ffn_layernorm"]
        elif self._model.sub_norms:
            names += ["self_attn.attn_sub_norm", "mlp.ffn_sub_norm"]
        if architecture == "Qwen3ForCausalLM":
            names += ["self_attn.q_norm", "self_attn.k_norm"]
        if architecture == "HunYuanDenseV1ForCausalLM":
            names += ["self_attn.query_layernorm", "self_attn.key_layernorm"]
        return names

    def _norm_size(self, name: str) -> int:
        if name.endswith(("q_norm", "k_norm", "query_layernorm", "key_layernorm")):
            return self._head
        if name.endswith(("attn_sub_norm", "inner_attn_ln")):
            return self._sizes["q"]
        return FFN if name.startswith("mlp.") else HIDDEN

    def _norm(self, size: int) -> torch.Tensor:
        return torch.from_numpy(self._random.uniform(0.5, 1.5, size)).to(self._dtype)

    def _table(self, name: str) -> Iterator[tuple[str, torch.Tensor]]:
        """The embeddings or the head."""
        if self._model.ternary_embeddings:
            yield from self._grouped(name, VOCAB, HIDDEN, size=0.5)
        else:
            values = self._random.normal(0, 0.5, (VOCAB, HIDDEN)).astype(np.float16)
            yield f"{name}.weight", torch.from_numpy(values).to(self._dtype)

    def _linear(self, name: str, out: int, columns: int) -> Iterator[tuple[str, torch.Tensor]]:
        storage = self._model.storage
        if storage in (Storage.FLOAT_GROUPS, Storage.MLX):
            yield from self._grouped(name, out, columns)
            return
        if storage is Storage.FLOAT_ROWS:
            # two blocks of rows, as two devices trained them
            scales = np.repeat(self._scales((2, 1), 0.05), out // 2, axis=0)
            yield f"{name}.weight", self._floats(self._trits(out, columns), scales)
            return
        weights = self._random.normal(0, 0.05, (out, columns)).astype(np.float32)
        if storage is Storage.MASTER:
            yield f"{name}.weight", torch.from_numpy(weights).to(self._dtype)
            return
        _, trits, mean = stable_master(weights)
        scale = mean if storage is Storage.PACKED_MULTIPLY else np.float32(1) / mean
        yield f"{name}.weight", torch.from_numpy(pack_two_bit(trits))
        yield f"{name}.weight_scale", torch.tensor([float(scale)]).to(torch.bfloat16)

    def _grouped(
        self, name: str, out: int, columns: int, size: float = 0.05
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """A matrix with a scale per 128 columns: as floats, or in MLX's packed form."""
        trits = self._trits(out, columns)
        scales = self._scales((out, columns // 128), size)
        if self._model.storage is not Storage.MLX:
            yield f"{name}.weight", self._floats(trits, scales)
            return
        yield from mlx_affine(name, trits, scales.astype(np.float16)).items()

    def _trits(self, out: int, columns: int) -> np.ndarray:
        return self._random.integers(-1, 2, (out, columns)).astype(np.int8)

    def _scales(self, shape: tuple[int, int], size: float) -> np.ndarray:
        """Scales that the checkpoint's dtype holds exactly, float32."""
        values = self._random.uniform(0.5 * size, 1.5 * size, shape)
        dtype = torch.float16 if self._model.storage is Storage.MLX else self._dtype
        return torch.from_numpy(values).to(dtype).float().numpy()

    def _floats(self, trits: np.ndarray, scales: np.ndarray) -> torch.Tensor:
        columns = trits.shape[1] // scales.shape[1]
        values = torch.from_numpy(trits * np.repeat(scales, columns, axis=1)).to(self._dtype)
        if self._model.storage is Storage.FLOAT_GROUPS:
            # measured in published files: a few weights are one rounding step away from their group's scale
            number = int(np.flatnonzero(trits[0])[3])
            values[0, number] = torch.nextafter(values[0, number], torch.zeros((), dtype=self._dtype))
        return values
