"""Requests that would end llama-server: they are answered, and so is the next one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitexport.serve import Server
from tests.support.api_client import Client

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
