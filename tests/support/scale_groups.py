"""Checkpoints whose ternary weights have a scale per row or per group of columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

ONLINE = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}


def grouped_floats(
    out: int, columns: int, size: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16
) -> np.ndarray:
    """Trits times a scale per group of ``size`` columns, in the precision of ``dtype``."""
    rng = np.random.default_rng(seed)
    trits = rng.integers(-1, 2, (out, columns)).astype(np.float32)
    scales = rng.uniform(0.01, 0.05, (out, columns // size)).astype(np.float32)
    exact: np.ndarray = torch.from_numpy(trits * np.repeat(scales, size, axis=1)).to(dtype).float().numpy()
    return exact


def with_groups(
    source: Path,
    folder: Path,
    size: int,
    quantization: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Path:
    """A copy of a checkpoint whose linear layers have a scale per group.

    Args:
        size: columns of a group; 0 for a scale per row.
        quantization: quantization_config; None removes it.
        dtype: of the linear layers.
    """
    folder.mkdir()
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(source / "model.safetensors")
    for seed, (name, tensor) in enumerate(tensors.items()):
        if name.endswith("_proj.weight"):
            out, columns = tensor.shape
            floats = grouped_floats(out, columns, size or columns, seed, dtype)
            tensors[name] = torch.from_numpy(floats).to(dtype)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    if quantization is not None:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    return folder
