"""Requests that would end llama-server: they are answered, and so is the next one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitexport.serve import Server
from tests.serve.conftest import TEMPLATE_KEY
from tests.serve.test_api import TOOL_TEMPLATE
from tests.support.api_client import Client
from tests.support.gguf_files import rewritten

LEVELS = 20_000
SCHEMA = '{"properties":{"a":' * LEVELS + '{"type":"integer"}' + "}}" * LEVELS
NESTED = "root ::= " + 300_000 * "(" + '"a"' + 300_000 * ")"
CHAIN = "root ::= r0\n" + "".join(f"r{n} ::= r{n + 1}\n" for n in range(30_000)) + 'r30000 ::= "a"\n'


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[Client]:
    with Server(model, port=0, slots=1, threads=1) as server:  # of its own, since it may end
        yield Client(server.port)


def body(**values: Any) -> str:
    return json.dumps({"prompt": "def", "max_tokens": 2, **values})


@pytest.mark.parametrize(
    ("request_body", "message"),
    [
        (body()[:-1] + f', "json_schema": {SCHEMA}}}', "nests more than 500 levels deep"),
        (body(grammar=NESTED), "grammar"),
        (body(grammar=CHAIN), "grammar"),
    ],
    ids=["schema", "nested grammar", "chain of rules"],
)
def test_too_deep(client: Client, request_body: str, message: str) -> None:
    answer = client.ask("/v1/completions", request_body.encode())
    assert answer.status == 400
    assert message in answer.error
    assert client.complete("def", 1)["usage"]["completion_tokens"] <= 1


def test_brackets_in_a_text_are_no_levels(client: Client) -> None:
    answer = client.ask("/v1/completions", body(user='a"\\' + "[" * 600).encode())
    assert answer.status == 200, answer.body


def test_arguments_of_a_call_that_nest_deeply(model: Path, tmp_path: Path) -> None:
    """They are JSON in a string, which llama.cpp reads for templates that take objects."""
    file = rewritten(model, tmp_path / "tools.gguf", metadata={TEMPLATE_KEY: TOOL_TEMPLATE})
    function = {"name": "weather", "arguments": '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"}
    call = {"id": "1", "type": "function", "function": function}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "b"},
    ]
    body = json.dumps({"messages": messages, "max_tokens": 1})
    with Server(file, port=0, slots=1) as server:
        client = Client(server.port)
        for text in (body, body.replace("arguments", "\\u0061rguments")):
            answer = client.ask("/v1/chat/completions", text.encode())
            assert answer.status == 400
            assert "more than 500 levels" in answer.error
        assert client.complete("a", 1)["choices"]
