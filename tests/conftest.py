"""Fixtures that several test modules share."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import run

# The proofs of files that were tried (bitexport.runtime.proofs) must not outlive the tests.
_cache = tempfile.TemporaryDirectory(prefix="bitexport-cache-")
atexit.register(_cache.cleanup)
os.environ["XDG_CACHE_HOME"] = _cache.name

# A shell starts background jobs with Ctrl-C ignored, and every process that a test starts would inherit that:
# an interrupted one would keep running.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``checkpoint_of(packing, **options)`` -> folder of a ``tiny_models.tiny_checkpoint``, made once.

    Read-only by agreement: a test that damages a checkpoint copies it first.
    """
    from tests.support.tiny_models import tiny_checkpoint

    made: dict[tuple[Any, ...], Path] = {}

    def make(packing: str = "master", **options: Any) -> Path:
        key = (packing, *sorted(options.items()))
        if key not in made:
            made[key] = tiny_checkpoint(tmp_path_factory.mktemp("tiny") / packing, packing, **options)
        return made[key]

    return make


@pytest.fixture(scope="session")
def run_cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """:func:`tests.support.cli.run`."""
    return run


@pytest.fixture(scope="session")
def gguf_of(
    checkpoint_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """``gguf_of(packing, embed_type="f16", **options)`` -> the GGUF of ``checkpoint_of(packing, **options)``.

    Read-only by agreement, like the checkpoint.
    """
    from bitexport.convert import convert

    made: dict[tuple[Any, ...], Path] = {}

    def make(packing: str = "master", embed_type: str = "f16", **options: Any) -> Path:
        key = (packing, embed_type, *sorted(options.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("gguf") / f"{packing}.gguf"
            convert(checkpoint_of(packing, **options), made[key], embed_type=embed_type)
        return made[key]

    return make


@pytest.fixture
def empty_folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder for outputs, checked to be empty again at the end."""
    made = tmp_path / "out"
    made.mkdir()
    yield made
    assert list(made.iterdir()) == []
