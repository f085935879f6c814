"""Models and workers that the tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.tiny_models import Shape
from tests.support.workers import WorkerProcess, worker_process


@pytest.fixture(scope="session")
def model(gguf_of: Callable[..., Path]) -> Path:
    """A tiny model of four layers."""
    return gguf_of("packed-multiply", shape=Shape(layers=4))


@pytest.fixture(scope="module")
def one() -> Iterator[WorkerProcess]:
    with worker_process() as started:
        yield started


@pytest.fixture(scope="module")
def other() -> Iterator[WorkerProcess]:
    with worker_process() as started:
        yield started
