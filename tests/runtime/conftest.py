"""A model that writes something: the shipped one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.repository import TINY_PYTHON


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``examples/tiny-python``, converted; read-only by agreement."""
    from bitexport.convert import convert

    file = tmp_path_factory.mktemp("shipped") / "tiny-python.gguf"
    convert(TINY_PYTHON, file)
    return file
