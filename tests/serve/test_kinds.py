"""Embedding models, and models without a chat template."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitexport.convert import convert
from bitexport.embed import embed
from bitexport.errors import BitexportWarning, UsageError
from bitexport.serve import Limits, Server
from tests.support.api_client import Client
from tests.support.embedding_models import DOCUMENTS, embedding_checkpoint
from tests.support.gguf_files import rewritten


@pytest.fixture(scope="module")
def embedding_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedding")
    convert(embedding_checkpoint(folder / "checkpoint"), folder / "model.gguf", embed_type="f16")
    return folder / "model.gguf"


@pytest.mark.parametrize("pooling", [None, "mean"])
def test_embeddings_are_those_of_embed(embedding_model: Path, pooling: str | None) -> None:
    with Server(embedding_model, port=0, slots=2, pooling=pooling) as server:
        client = Client(server.port)
        answer = client.ask("/v1/embeddings", {"input": DOCUMENTS, "model": "any"})
        assert answer.status == 200, answer
        found = np.array([entry["embedding"] for entry in answer.json["data"]])
        one = client.ask("/v1/embeddings", {"input": DOCUMENTS[0]}).json["data"][0]["embedding"]
        refused = client.ask("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]})
    expected = embed(embedding_model, DOCUMENTS, pooling=pooling).array()
    np.testing.assert_allclose(found, expected, atol=2e-3)
    np.testing.assert_allclose(one, expected[0], atol=2e-3)
    assert [entry["index"] for entry in answer.json["data"]] == list(range(len(DOCUMENTS)))
    assert refused.status == 400
    assert "/v1/embeddings" in refused.error


def test_vectors_keep_their_length_if_the_file_says_so(embedding_model: Path, tmp_path: Path) -> None:
    file = rewritten(embedding_model, tmp_path / "x.gguf", metadata={"bitexport.embedding.normalize": False})
    with Server(file, port=0, slots=1) as server:
        answer = Client(server.port).ask("/v1/embeddings", {"input": DOCUMENTS[0]})
    found = np.array(answer.json["data"][0]["embedding"])
    expected = embed(file, DOCUMENTS[:1]).array()[0]
    assert abs(np.linalg.norm(expected) - 1) > 0.1
    np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-2)


def test_texts_in_one_request(embedding_model: Path) -> None:
    with Server(embedding_model, port=0, slots=1, limits=Limits(texts=2)) as server:
        client = Client(server.port)
        assert client.ask("/v1/embeddings", {"input": ["a", "b"]}).status == 200
        answer = client.ask("/v1/embeddings", {"input": ["a", "b", "c"]})
    assert answer.status == 400
    assert "3 texts" in answer.error


def test_a_default_prompt_is_the_clients_task(embedding_model: Path, tmp_path: Path) -> None:
    file = rewritten(
        embedding_model, tmp_path / "x.gguf", metadata={"bitexport.embedding.default_prompt": "query"}
    )
    with pytest.warns(BitexportWarning, match="default prompt 'query'"):
        Server(file)


def test_a_model_that_generates_gives_no_embeddings(model: Path, client: Client) -> None:
    answer = client.ask("/v1/embeddings", {"input": "a"})
    assert answer.status == 400
    with pytest.raises(UsageError, match="--pooling"):
        Server(model, embeddings=True)
    with pytest.raises(UsageError, match="mean, cls, last"):
        Server(model, pooling="max")


def test_a_chosen_pooling_makes_vectors_of_any_model(model: Path) -> None:
    with Server(model, port=0, slots=1, embeddings=True, pooling="mean") as server:
        answer = Client(server.port).ask("/v1/embeddings", {"input": "a b c"})
    expected = embed(model, ["a b c"], pooling="mean").array()[0]
    np.testing.assert_allclose(answer.json["data"][0]["embedding"], expected, atol=2e-3)


def test_no_template_no_chat(without_template: Path) -> None:
    """Upstream would use ChatML, which the model has never seen."""
    with Server(without_template, port=0, slots=1) as server:
        client = Client(server.port)
        answer = client.ask("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]})
        assert answer.status == 400
        assert answer.json["error"]["type"] == "no_chat_template"
        assert client.complete("a", 2)["choices"]
