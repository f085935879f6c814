"""A text that a model of 100,000 parameters can learn in seconds, and configurations for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bitexport.train.config import TrainConfig
from bitexport.train.stages import train

WORDS = {"red": "rouge", "house": "maison", "small": "petit", "dog": "chien", "old": "vieux", "book": "livre"}


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """transformers' quantizers compile themselves on first use; tiny models run faster without that."""
    with torch.compiler.set_stance("force_eager"):
        yield


def write_pairs(folder: Path, count: int = 240) -> str:
    """Write two text files, aligned line by line, and return the source that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(WORDS)
    english, french = [], []
    for i in range(count):
        words = [names[i * (k + 3) // (5 * k + 1) % len(names)] for k in range(2 + i % 4)]
        mark = f"{chr(97 + i % 26)}{chr(97 + i // 26)}"
        english.append(f"{' '.join(words)} number {mark}")
        french.append(f"{' '.join(WORDS[word] for word in words)} numéro {mark}")
    (folder / "a.en").write_text("\n".join(english) + "\n", encoding="utf-8")
    (folder / "a.fr").write_text("\n".join(french) + "\n", encoding="utf-8")
    return f"parallel:{folder / 'a.en'},{folder / 'a.fr'}"


def tiny_config(folder: Path, **changes: object) -> TrainConfig:
    """A teacher of about 100,000 parameters in a few steps; ``folder`` gets pairs/ and run/."""
    settings: dict[str, object] = {
        "run_dir": str(folder / "run"),
        "data": [write_pairs(folder / "pairs")],
        "template": "tags",
        "held_out_percent": 15,
        "sequence_length": 48,
        "architecture": "llama",
        "ternary": False,
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 64,
        "pretrain_tokens": 4000,
        "stage2_tokens": 2000,
        "stage3_tokens": 4000,
        "learning_rate": 5e-3,
        "relation_weight": 10.0,
        "relation_heads": 4,
        "calibration_batches": 1,
        "batch_tokens": 512,
        "micro_batch_tokens": 256,
        "log_every": 1,
        "eval_every": 4,
        "save_every": 4,
        "report_to": "none",
    }
    return TrainConfig(**(settings | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a tiny teacher; its model is in pretrain/model."""
    config = tiny_config(tmp_path_factory.mktemp("teacher"))
    train(config, "pretrain", say=lambda _: None)
    return Path(config.run_dir)


@pytest.fixture(scope="session")
def student_run(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a student of that teacher after all three stages."""
    folder = tmp_path_factory.mktemp("student")
    config = student_config(folder, teacher)
    train(config, "all", say=lambda _: None)
    return Path(config.run_dir)


def student_config(folder: Path, teacher: Path, /, **changes: object) -> TrainConfig:
    """:func:`tiny_config` for a student of ``teacher``'s run, with the same data."""
    config = tiny_config(folder)
    settings = {"teacher": str(teacher / "pretrain" / "model"), "corpus": config.data, "learning_rate": 2e-3}
    return tiny_config(folder, **(settings | changes))
