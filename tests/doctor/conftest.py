"""Tiny models, trained once per session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import trained


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A held-out text in the language of the models."""
    path = tmp_path_factory.mktemp("text") / "held-out.txt"
    path.write_text(trained.language(3, 25), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained with quantization."""
    model = trained.train(trained.fresh(quantized=True), 200)
    return trained.save(model, tmp_path_factory.mktemp("good") / "c")


@pytest.fixture(scope="session")
def in_float(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained in float that claims to be ternary; deep and narrow, so that quantization hurts it."""
    model = trained.train(trained.fresh(quantized=False, hidden=64, layers=12), 600)
    return trained.save(model, tmp_path_factory.mktemp("float") / "c")


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model before its first training step."""
    return trained.save(trained.fresh(quantized=True), tmp_path_factory.mktemp("untrained") / "c")


@pytest.fixture(scope="session")
def good_gguf(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file made from :func:`good`."""
    from bitexport.convert import convert

    path = tmp_path_factory.mktemp("file") / "good.gguf"
    convert(good, path, embed_type="f16")
    return path
