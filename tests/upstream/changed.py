"""Checkpoints of tests/support/upstream_models.py with something changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.support.tiny_models import pack_two_bit
from tests.support.upstream_models import as_master


def edit(folder: Path, **entries: Any) -> None:
    """Change entries of config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | entries
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def edit_weights(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Change the weights in place."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def add_sub_norm(folder: Path) -> None:
    name = "model.layers.0.self_attn.attn_sub_norm.weight"
    edit_weights(folder, lambda weights: weights.update({name: np.ones(256, dtype=np.float32)}))


def add_window(folder: Path) -> None:
    """Let the second layer use sliding-window attention, with ordinary RoPE."""
    kinds = ["full_attention", "sliding_attention"]
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    edit(folder, use_sliding_window=True, sliding_window=64, layer_types=kinds, rope_parameters=rope)


def add_bias(folder: Path) -> None:
    name = "model.layers.0.mlp.gate_proj.bias"
    edit_weights(folder, lambda weights: weights.update({name: np.ones(512, dtype=np.float32)}))


def pack(folder: Path) -> None:
    """Pack the ternary weights as transformers does."""

    def packed(weights: dict[str, np.ndarray]) -> None:
        for name in [name for name in weights if name.endswith("_proj.weight")]:
            scale = np.abs(weights[name]).max()
            weights[name.removesuffix("weight") + "weight_scale"] = np.array([1 / scale], dtype=np.float32)
            weights[name] = pack_two_bit(np.sign(weights[name]).astype(np.int8))

    edit_weights(folder, packed)
    offline = {"linear_class": "bitlinear", "quantization_mode": "offline"}
    edit(
        folder,
        quantization_config={"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"], **offline},
    )


def damage(folder: Path) -> None:
    """Make one of the linear layers float."""

    def changed(weights: dict[str, np.ndarray]) -> None:
        weights["model.layers.1.mlp.up_proj.weight"][0, :8] = np.arange(8)

    edit_weights(folder, changed)


def as_float(folder: Path) -> None:
    """Make all linear layers float."""
    as_master(folder)
    edit(folder, quantization_config=None)


def add_vision(folder: Path) -> None:
    """Add the tensors of a vision part."""
    name = "model.vision_tower.encoder.layers.0.mlp.fc1.weight"
    edit_weights(folder, lambda weights: weights.update({name: np.ones((8, 8), dtype=np.float32)}))


def set_trap(folder: Path) -> None:
    """Give the checkpoint code for its configuration and its tokenizer, which leaves a trace when it runs."""
    for kind in ("configuration", "tokenization"):
        (folder / f"{kind}_x.py").write_text(f"open({str(folder / 'trace')!r}, 'w')\nclass T: pass\n")
    edit(folder, auto_map={"AutoConfig": "configuration_x.T"})
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["tokenization_x.T", None]}, "tokenizer_class": "T"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


#: The model that is changed, and the change.
CHANGED: Mapping[str, tuple[str, Callable[[Path], None]]] = {
    "sub norm": ("Mistral, linear RoPE", add_sub_norm),
    "student with YaRN": ("Qwen3, YaRN", add_sub_norm),
    "student with a window": ("Qwen3, YaRN", add_window),
    "bias": ("OLMo", add_bias),
    "relu2": ("Mistral, linear RoPE", lambda folder: edit(folder, hidden_act="relu2")),
    "packed": ("Mistral, linear RoPE", pack),
    "damaged": ("Mistral, linear RoPE", damage),
    "float": ("SmolLM3 (NoPE layers)", as_float),
    "remote code": ("MiniCPM (BitCPM4), longrope", set_trap),
    "vision": ("Mistral, linear RoPE", add_vision),
}
