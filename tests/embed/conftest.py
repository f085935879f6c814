"""Embedding models that the tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bitexport.convert import convert
from tests.support.embedding_models import embedding_checkpoint


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """``model_of(architecture, pooling)`` -> a checkpoint and its GGUF, made once; read-only by agreement."""
    made: dict[tuple[str, str], tuple[Path, Path]] = {}

    def make(architecture: str = "Qwen3Model", pooling: str = "lasttoken") -> tuple[Path, Path]:
        key = architecture, pooling
        if key not in made:
            folder = tmp_path_factory.mktemp("embedding")
            checkpoint = embedding_checkpoint(folder / "checkpoint", architecture, pooling=pooling)
            convert(checkpoint, folder / "m.gguf", embed_type="f16")
            made[key] = checkpoint, folder / "m.gguf"
        return made[key]

    return make
