"""Servers with tiny models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bitexport.serve import Server
from tests.support.api_client import Client
from tests.support.gguf_files import rewritten
from tests.support.tiny_models import Shape

TEMPLATE_KEY = "tokenizer.chat_template"


@pytest.fixture(scope="package")
def model(gguf_of: Callable[..., Path]) -> Path:
    """A model that generates, with a chat template that puts the messages one after the other."""
    return gguf_of("packed-multiply")


@pytest.fixture(scope="package")
def long_model(gguf_of: Callable[..., Path]) -> Path:
    """A model whose context is long enough for answers that take a while."""
    return gguf_of("packed-multiply", shape=Shape(context=32768))


@pytest.fixture(scope="package")
def without_template(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rewritten(model, tmp_path_factory.mktemp("serve") / "plain.gguf", drop=[TEMPLATE_KEY])


@pytest.fixture(scope="package")
def server(model: Path) -> Iterator[Server]:
    """One server that many tests share: 4 slots, 2 threads."""
    with Server(model, port=0, slots=4, threads=2) as started:
        yield started


@pytest.fixture(scope="package")
def client(server: Server) -> Client:
    return Client(server.port)
