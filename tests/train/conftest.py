"""A text that a model of 50,000 parameters can learn in seconds, and a configuration to go with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from train.config import PretrainConfig
from train.pretrain import pretrain


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """transformers' quantizers compile themselves on first use; tiny models run faster without."""
    with torch.compiler.set_stance("force_eager"):
        yield


def write_sources(folder: Path, files: int = 60) -> Path:
    """A folder of small, different, quite predictable Python files."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(files):
        functions = [
            f"def add_{i}_{j}(first, second):\n    return first + second * {i * j}\n"
            for j in range(i % 5 + 8)
        ]
        (folder / f"module_{i}.py").write_text("\n\n".join(functions), encoding="utf-8")
    return folder


def tiny_config(folder: Path, **changes: object) -> PretrainConfig:
    """Twenty steps, a checkpoint every ten. ``folder`` receives sources/ and run/."""
    settings: dict[str, object] = {
        "run_dir": str(folder / "run"),
        "text_dir": str(write_sources(folder / "sources")),
        "held_out_percent": 20,
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "sequence_length": 32,
        "batch_size": 8,
        "micro_batch_size": 4,
        "max_steps": 20,
        "warmup_steps": 2,
        "decay_steps": 5,
        "learning_rate": 5e-3,
        "compile": False,
        "log_every": 1,
        "eval_every": 10,
        "save_every": 10,
    }
    return PretrainConfig(**(settings | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished tiny training. Tests copy it before they change anything."""
    config = tiny_config(tmp_path_factory.mktemp("pretrain"))
    pretrain(config, say=lambda _: None)
    return Path(config.run_dir)
