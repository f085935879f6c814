"""OpenAI's own client, unmodified, on our server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest

from bitexport.convert import convert
from bitexport.embed import embed
from bitexport.serve import Server
from tests.support.embedding_models import DOCUMENTS, embedding_checkpoint

PROMPT = "def add(left, right):\n"
KEY = "a-key-that-the-server-wants"
ANSWER_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "schema": {
            "type": "object",
            "properties": {"valid": {"type": "boolean"}},
            "required": ["valid"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def guarded(model: Path) -> Iterator[Server]:
    """A server that wants a key."""
    with Server(model, port=0, slots=2, threads=2, api_key=KEY) as started:
        yield started


@pytest.fixture
def client(guarded: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=KEY, max_retries=0) as connected:
        yield connected


def test_chat_streamed_and_whole_is_the_same(client: openai.OpenAI, model: Path) -> None:
    request = {
        "model": model.stem,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 12,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**request)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12
    assert whole.choices[0].finish_reason == "length"
    pieces = client.chat.completions.create(**request, stream=True)
    streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert streamed == whole.choices[0].message.content


def test_completion_with_log_probabilities(client: openai.OpenAI, model: Path) -> None:
    found = client.completions.create(
        model=model.stem, prompt=PROMPT, max_tokens=5, temperature=0, logprobs=3
    )
    assert found.choices[0].logprobs is not None
    content = found.choices[0].logprobs.model_dump()["content"]
    assert len(content) == 5
    assert all(entry["logprob"] <= 0 for entry in content)


def test_an_answer_in_a_json_schema(client: openai.OpenAI, model: Path) -> None:
    found = client.chat.completions.create(
        model=model.stem,
        messages=[{"role": "user", "content": PROMPT}],
        response_format=ANSWER_FORMAT,
        max_tokens=60,
        temperature=0,
    )
    assert found.choices[0].message.content is not None
    assert set(json.loads(found.choices[0].message.content)) == {"valid"}


def test_models(client: openai.OpenAI, model: Path) -> None:
    assert [found.id for found in client.models.list()] == [model.stem]


def test_errors_are_the_clients_own_exceptions(guarded: Server, client: openai.OpenAI, model: Path) -> None:
    stranger = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.completions.create(model=model.stem, prompt=PROMPT, max_tokens=1)
    with pytest.raises(openai.BadRequestError, match="context"):
        client.completions.create(model=model.stem, prompt="word " * 5000, max_tokens=1)


def test_embeddings(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    convert(embedding_checkpoint(tmp_path / "checkpoint"), model, embed_type="f16")
    with Server(model, port=0, slots=1, threads=2) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        with client:
            found = client.embeddings.create(model=model.stem, input=DOCUMENTS)
    vectors = np.array([entry.embedding for entry in found.data])
    assert vectors == pytest.approx(embed(model, DOCUMENTS).array(), abs=1e-5)
