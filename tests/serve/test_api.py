"""The API in OpenAI's form: text, streams, log-probabilities, JSON schemas, tools, many clients."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from bitexport.convert import convert
from bitexport.metrics.logits import log_softmax
from bitexport.runtime.completion import Completion, Sampling
from bitexport.runtime.session import Session
from bitexport.serve import RequestRecord, Server
from tests.serve.conftest import TEMPLATE_KEY
from tests.support.api_client import Client
from tests.support.gguf_files import rewritten
from tests.support.repository import TINY_PYTHON

PROMPT = "def add(left, right):\n"
PROMPTS = [PROMPT, "for index in range(10):\n", "The quick brown fox", "class Example:\n", "print("]

#: A template with tools. llama.cpp learns from it how the model writes a call.
TOOL_TEMPLATE = (
    "{% for tool in tools or [] %}<tools>{{ tool | tojson }}</tools>\n{% endfor %}"
    "{% for m in messages %}<|begin_of_text|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}<tool>"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "</tool>{% endfor %}<|end_of_text|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|begin_of_text|>assistant\n{% endif %}"
)

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
            "required": ["city"],
        },
    },
}


def greedy_text(model: Path, prompt: str, count: int) -> str:
    return "".join(Completion(model, prompt, sampling=Sampling(temperature=0), max_tokens=count, threads=2))


def test_greedy_text_is_that_of_run(
    model: Path, client: Client, run_cli: Callable[..., CompletedProcess[str]]
) -> None:
    for prompt in PROMPTS:
        assert client.complete(prompt, 24)["choices"][0]["text"] == greedy_text(model, prompt, 24)
    done = run_cli("run", model, "--prompt", PROMPT, "-n", "8", "--temperature", "0", "--json", "-t", "2")
    assert client.complete(PROMPT, 8)["choices"][0]["text"] == json.loads(done.stdout)["completion"]


def test_greedy_text_of_a_trained_model_is_that_of_run(tmp_path: Path) -> None:
    """Over many tokens and prompts, so that a different kernel on either side would show."""
    file = tmp_path / "tiny-python.gguf"
    convert(TINY_PYTHON, file)
    lines = [line for line in Path(json.__file__).read_text().splitlines() if len(line) > 30][:20]
    with Server(file) as server:
        client = Client(server.port)
        for line in lines:
            # Only the rest of a prompt that begins like the last one would be computed: rounded differently.
            found = client.complete(line, 40, cache_prompt=False)["choices"][0]["text"]
            assert found == greedy_text(file, line, 40), line


def test_a_completion_has_openais_fields(model: Path, client: Client) -> None:
    found = client.complete(PROMPT, 8)
    assert found["object"] == "text_completion"
    assert found["model"] == model.stem
    assert found["choices"][0]["finish_reason"] == "length"
    with Session(model, n_ctx=64) as session:
        tokens = len(session.tokenize(PROMPT))
    assert found["usage"]["prompt_tokens"] == tokens
    assert found["usage"]["completion_tokens"] == 8


def test_chat_applies_the_template(model: Path, client: Client) -> None:
    messages = [{"role": "system", "content": "def add"}, {"role": "user", "content": "(left, right):\n"}]
    answer = client.ask("/v1/chat/completions", {"messages": messages, "max_tokens": 8, "temperature": 0})
    found = answer.json
    assert found["object"] == "chat.completion"
    assert found["choices"][0]["message"]["role"] == "assistant"
    assert found["choices"][0]["message"]["content"] == greedy_text(model, PROMPT, 8)


def test_a_stream_is_the_same_text_in_pieces(client: Client) -> None:
    whole = client.complete(PROMPT, 16)["choices"][0]["text"]
    body = {"prompt": PROMPT, "max_tokens": 16, "temperature": 0, "stream_options": {"include_usage": True}}
    events = list(client.events("/v1/completions", body))
    assert len(events) > 8
    assert "".join(event["choices"][0]["text"] for event in events if event["choices"]) == whole
    assert [event["choices"][0]["finish_reason"] for event in events if event["choices"]][-1] == "length"
    assert events[-1]["usage"]["completion_tokens"] == 16

    messages = [{"role": "user", "content": PROMPT}]
    chat = list(client.events("/v1/chat/completions", {**body, "messages": messages}))
    pieces = [event["choices"][0]["delta"].get("content") or "" for event in chat if event["choices"]]
    assert "".join(pieces) == whole


def test_log_probabilities_are_those_of_the_session(model: Path, client: Client) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    body = {"messages": messages, "max_tokens": 6, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    body["cache_prompt"] = False  # else the last token is computed alone, which rounds differently
    found = client.ask("/v1/chat/completions", body).json["choices"][0]["logprobs"]["content"]
    assert len(found) == 6
    with Session(model, n_ctx=64, exact=False) as session:
        ids = session.tokenize(PROMPT)
        for entry in found:
            row = log_softmax(session.feed(ids).astype(np.float64))
            best = np.argsort(-row)[:3]
            assert [top["id"] for top in entry["top_logprobs"]] == best.tolist()
            np.testing.assert_allclose(
                [top["logprob"] for top in entry["top_logprobs"]], row[best], atol=1e-4
            )
            assert entry["logprob"] == pytest.approx(row[entry["id"]], abs=1e-4)
            assert bytes(entry["bytes"]) == session.piece(entry["id"])
            ids = [entry["id"]]


def test_an_answer_follows_a_json_schema(client: Client) -> None:
    schema = {
        "type": "object",
        "properties": {"size": {"type": "integer"}, "kind": {"enum": ["fox", "dog"]}},
        "required": ["size", "kind"],
        "additionalProperties": False,
    }
    body = {
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 96,
        "temperature": 1.0,
        "seed": 1,
        "response_format": {"type": "json_schema", "json_schema": {"name": "animal", "schema": schema}},
    }
    choice = client.ask("/v1/chat/completions", body).json["choices"][0]
    assert choice["finish_reason"] == "stop", choice
    found = json.loads(choice["message"]["content"])
    assert set(found) == {"size", "kind"}
    assert isinstance(found["size"], int)
    assert found["kind"] in ("fox", "dog")


def test_tools_where_the_template_has_them(long_model: Path, tmp_path: Path) -> None:
    file = rewritten(long_model, tmp_path / "tools.gguf", metadata={TEMPLATE_KEY: TOOL_TEMPLATE})
    body = {
        "messages": [{"role": "user", "content": "Rome?"}],
        "tools": [WEATHER],
        "tool_choice": "required",
        "max_tokens": 120,
        "temperature": 0,
        "logit_bias": [["<tool>", 1000]],  # the weights are random: begin a call
    }
    with Server(file, port=0, slots=1, ctx=1024) as server:
        choice = Client(server.port).ask("/v1/chat/completions", body).json["choices"][0]
    call = choice["message"]["tool_calls"][0]
    assert call["type"] == "function"
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"])["city"] in ("Oslo", "Rome")


def test_many_clients_get_what_one_gets_alone(client: Client) -> None:
    alone = {prompt: client.complete(prompt, 24)["choices"][0]["text"] for prompt in PROMPTS}
    with ThreadPoolExecutor(12) as clients:
        asked = [PROMPTS[number % len(PROMPTS)] for number in range(36)]
        answers = list(clients.map(lambda prompt: client.complete(prompt, 24), asked))
    for prompt, answer in zip(asked, answers, strict=True):
        assert answer["choices"][0]["text"] == alone[prompt]


def test_a_common_beginning_is_computed_once(client: Client) -> None:
    beginning = "The quick brown fox jumps over the lazy dog. " * 4
    client.complete(beginning + "It's 1234", 1)
    second = client.complete(beginning + "It's 12 o'clock", 1)
    third = client.complete(beginning + "It's 12 o'clock", 1, cache_prompt=False)
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached > 0.8 * second["usage"]["prompt_tokens"]
    assert third["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["choices"][0]["text"] == third["choices"][0]["text"]


def test_models_health_and_metrics(model: Path, client: Client) -> None:
    (found,) = client.ask("/v1/models").json["data"]
    assert found["id"] == model.stem
    assert found["meta"]["n_ctx"] == 256
    assert client.ask("/health").json == {"status": "ok"}
    client.complete(PROMPT, 2)
    metrics = client.ask("/metrics").body.decode()
    assert "llamacpp:tokens_predicted_total" in metrics


def test_each_request_is_reported(model: Path) -> None:
    records: list[RequestRecord] = []
    with Server(model, port=0, slots=1, on_request=records.append) as server:
        client = Client(server.port)
        found = client.complete(PROMPT, 4)
        client.complete(PROMPT, 4)
        list(client.events("/v1/completions", {"prompt": PROMPT, "max_tokens": 5, "temperature": 0}))
        client.ask("/v1/completions", {"max_tokens": 4})
        client.ask("/nothing?secret=1")
    # A record is written after its answer, so a quick next request may be recorded before a slow one.
    records.sort(key=lambda record: (record.status, record.tokens or 0, record.cached_tokens or 0))
    assert [(record.method, record.path) for record in records[:4]] == [("POST", "/v1/completions")] * 4
    assert records[4].path == "/nothing"
    assert [record.status for record in records] == [200, 200, 200, 400, 404]
    assert all(record.complete for record in records)
    assert [record.tokens for record in records] == [4, 4, 5, None, None]
    count = found["usage"]["prompt_tokens"]
    assert [record.prompt_tokens for record in records[:3]] == [count] * 3
    assert [record.cached_tokens for record in records[:3]] == [0, count - 1, count - 1]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"prompt": 1}', b'{"prompt": "\xff"}', b"[" * 100_000])
def test_a_malformed_body_is_an_error_and_no_harm(client: Client, body: bytes) -> None:
    answer = client.ask("/v1/completions", body)
    assert 400 <= answer.status < 600
    assert answer.json["error"]["message"]
    assert client.complete(PROMPT, 2)["choices"]
