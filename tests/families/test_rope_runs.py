"""RoPE scaling as our llama.cpp runs it, against transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitexport.convert import convert
from bitexport.reference import load_reference
from bitexport.runtime.session import Session

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}


def distance(left: np.ndarray, right: np.ndarray) -> float:
    """One minus the smallest cosine over positions; logits float32 ``[T, V]``."""
    products = (left * right).sum(-1) / np.linalg.norm(left, axis=-1) / np.linalg.norm(right, axis=-1)
    return float(1 - products.min())


@pytest.mark.parametrize(("architecture", "rope"), [("llama", LLAMA3), ("llama", LINEAR), ("bitnet", LINEAR)])
def test_scaled_rope_runs_as_in_transformers(
    tmp_path: Path, checkpoint_of: Callable[..., Path], architecture: str, rope: dict[str, Any]
) -> None:
    plain = checkpoint_of("packed-divide", architecture=architecture)
    scaled = tmp_path / "scaled"
    shutil.copytree(plain, scaled)
    config = json.loads((scaled / "config.json").read_text())
    (scaled / "config.json").write_text(json.dumps({**config, "rope_parameters": rope}))
    ids = np.random.default_rng(0).integers(3, 390, 200).tolist()
    expected = load_reference(scaled).logits(ids)
    found = {}
    for name, folder in (("plain", plain), ("scaled", scaled)):
        convert(folder, tmp_path / f"{name}.gguf", embed_type="f16")
        with Session(tmp_path / f"{name}.gguf") as session:
            found[name] = distance(expected, session.logits(ids))
    # the remaining difference is the rounding of activations; without the scaling it is much larger
    assert found["scaled"] < 1e-3
    assert found["scaled"] < found["plain"] / 5
