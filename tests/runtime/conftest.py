"""What several tests of the runtime share: a model that writes something, and an empty cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitexport.runtime import proofs
from tests.support.repository import TINY_PYTHON


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``examples/tiny-python``, converted; read-only by agreement."""
    from bitexport.convert import convert

    file = tmp_path_factory.mktemp("shipped") / "tiny-python.gguf"
    convert(TINY_PYTHON, file)
    return file


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no memory of proofs in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(proofs, "_proven", set())
    return tmp_path / "cache" / "bitexport" / "proven"
