"""What a request may cost, and what is closed."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitexport.errors import UsageError
from bitexport.serve import Limits, RequestRecord, Server
from tests.support.api_client import Client

PROMPT = "def add(left, right):\n"
LONG = {"prompt": PROMPT, "max_tokens": 200, "temperature": 0, "ignore_eos": True}
CHUNKED = b"1000\r\n" + b" " * 4096 + b"\r\n1\r\n \r\n0\r\n\r\n"


@pytest.fixture(scope="module")
def limited(model: Path) -> Iterator[Client]:
    limits = Limits(prompt_tokens=32, max_tokens=4, body_bytes=4096, queue=1)
    with Server(model, port=0, slots=1, threads=2, limits=limits) as server:
        yield Client(server.port)


def test_generated_tokens(limited: Client) -> None:
    for asked in (
        {"max_tokens": 100},
        {},
        {"max_tokens": -1},
        {"max_completion_tokens": 50},
        {"n_predict": 9},
    ):
        answer = limited.ask("/v1/completions", {"prompt": PROMPT, "ignore_eos": True, **asked})
        assert answer.json["usage"]["completion_tokens"] == 4, asked
        assert answer.json["choices"][0]["finish_reason"] == "length"
    assert limited.complete(PROMPT, 2)["usage"]["completion_tokens"] == 2


def test_prompt_tokens(limited: Client) -> None:
    for path, body in (
        ("/v1/completions", {"prompt": PROMPT * 8}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT * 8}]}),
    ):
        answer = limited.ask(path, body)
        assert answer.status == 400
        assert "this server takes at most 32" in answer.error


def test_prompts_in_one_request(limited: Client) -> None:
    assert limited.ask("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 1}).status == 200
    answer = limited.ask("/v1/completions", {"prompt": ["a", "b", "c"], "max_tokens": 1})
    assert answer.status == 400
    assert "3 texts" in answer.error


def test_the_size_of_a_request(limited: Client) -> None:
    assert limited.ask("/v1/completions", {"prompt": "a" * 10_000}).status == 413
    in_chunks = limited.ask("/v1/completions", CHUNKED, {"Transfer-Encoding": "chunked"})
    assert in_chunks.status == 413
    announced = limited.ask("/v1/completions", b"{}", {"Content-Length": "1000000000"})
    assert announced.status == 413
    assert limited.complete(PROMPT, 1)["choices"]


def test_a_prompt_longer_than_the_context(client: Client) -> None:
    answer = client.ask("/v1/completions", {"prompt": PROMPT * 100})
    assert answer.status == 400
    assert answer.json["error"]["type"] == "exceed_context_size_error"


def test_requests_beyond_the_queue_are_refused(model: Path) -> None:
    with Server(model, port=0, slots=1, threads=1, limits=Limits(queue=1)) as server:
        client = Client(server.port)
        statuses = []

        def ask() -> None:
            statuses.append(client.ask("/v1/completions", LONG).status)

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(statuses) == {200, 429}
        assert statuses.count(200) >= 2
        # the places are free again
        assert client.complete(PROMPT, 1)["choices"]


def test_time(long_model: Path) -> None:
    """A late request ends with what it has; one that waited too long has nothing."""
    with Server(long_model, port=0, slots=1, threads=1, ctx=32768, limits=Limits(seconds=1)) as server:
        client = Client(server.port)
        body = {"prompt": "a", "ignore_eos": True, "max_tokens": 30000, "temperature": 0}
        started = time.monotonic()
        # Several at once: one that came a moment later may get a few tokens after the first, but not all may.
        connections = [client.open("/v1/completions", body) for _ in range(6)]
        answers = [connection.getresponse() for connection in connections]
        documents = [(answer.status, json.loads(answer.read())) for answer in answers]
        for connection in connections:
            connection.close()
        assert time.monotonic() - started < 10
        complete = [document for status, document in documents if status == 200]
        assert complete
        for document in complete:
            assert 0 < document["usage"]["completion_tokens"] < 30000
            assert document["choices"][0]["finish_reason"] == "length"
        late = [(status, document) for status, document in documents if status != 200]
        assert late
        assert {status for status, _ in late} == {503}
        assert "longer than this server allows" in late[0][1]["error"]["message"]


def test_a_client_that_leaves_frees_its_slot(long_model: Path) -> None:
    records: list[RequestRecord] = []
    left = threading.Event()

    def collect(record: RequestRecord) -> None:
        records.append(record)
        left.set()

    with Server(long_model, port=0, slots=1, threads=1, ctx=4096, on_request=collect) as server:
        client = Client(server.port)
        stream = client.events("/v1/completions", {**LONG, "max_tokens": 4000})
        next(stream)
        stream.close()
        assert left.wait(20)
        assert not records[0].complete
        assert client.complete(PROMPT, 2)["choices"]
        assert records[-1].seconds < 5


def test_a_client_that_reads_slowly_does_not_stop_the_others(long_model: Path) -> None:
    with Server(long_model, port=0, slots=2, threads=2, ctx=1024) as server:
        client = Client(server.port)
        with socket.create_connection(("127.0.0.1", server.port)) as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            body = json.dumps({**LONG, "max_tokens": 900, "stream": True}).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            slow.sendall(head.encode() + body)
            assert slow.recv(100).startswith(b"HTTP/1.1 200")
            assert client.complete(PROMPT, 8)["usage"]["completion_tokens"] == 8


def test_a_client_that_never_finishes_its_request_is_dropped(model: Path) -> None:
    with (
        Server(model, port=0, slots=1, limits=Limits(socket_seconds=1, queue=0)) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as slow,
    ):
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        # it does not take the only place
        assert Client(server.port).complete(PROMPT, 1)["choices"]
        received = b""
        while data := slow.recv(1000):
            received += data
        assert received == b"" or received.startswith(b"HTTP/1.1 4")
        assert Client(server.port).complete(PROMPT, 1)["choices"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/props"),
        ("POST", "/props"),
        ("GET", "/slots"),
        ("POST", "/slots/0?action=save"),
        ("POST", "/models/load"),
        ("GET", "/cors-proxy?url=http://127.0.0.1/"),
        ("POST", "/tools"),
        ("GET", "/tools"),
        ("POST", "/lora-adapters"),
        ("POST", "/infill"),
        ("GET", "/v1/stream?conv_id=1"),
        ("DELETE", "/v1/stream?conv_id=1"),
        ("POST", "/predict"),
        ("GET", "/../../pyproject.toml"),
        ("GET", "/%2e%2e/server.py"),
    ],
)
def test_what_is_not_listed_is_closed(client: Client, method: str, path: str) -> None:
    answer = client.ask(path, b"{}" if method != "GET" else None, method=method)
    assert answer.status in (403, 404)
    assert answer.json["error"]["code"] == answer.status


def test_foreign_pages_and_host_names_are_refused_without_a_key(client: Client) -> None:
    body = {"prompt": PROMPT, "max_tokens": 1}
    assert client.ask("/v1/completions", body, {"Origin": "http://localhost:3000"}).status == 200
    foreign_page = client.ask("/v1/completions", body, {"Origin": "https://example.com"})
    assert foreign_page.status == 403
    assert "--api-key" in foreign_page.error
    assert "Access-Control-Allow-Origin" not in foreign_page.headers
    for host in ("example.com", "127.0.0.1.example.com", "localhost.example.com", "", "10.0.0.1"):
        assert client.ask("/v1/completions", body, {"Host": host}).status == 403, host


def test_pictures_are_not_fetched(client: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.5)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/picture.png"
        content = [{"type": "image_url", "image_url": {"url": url}}]
        answer = client.ask("/v1/chat/completions", {"messages": [{"role": "user", "content": content}]})
        assert 400 <= answer.status <= 500
        with pytest.raises(TimeoutError):
            listener.accept()


def test_a_conversation_that_outlives_its_connection_is_refused(client: Client) -> None:
    answer = client.ask("/v1/completions", {"prompt": PROMPT, "stream": True}, {"X-Conversation-Id": "1"})
    assert answer.status == 400


@pytest.mark.parametrize(
    ("name", "value"),
    [("queue", -1), ("body_bytes", 0), ("seconds", -5), ("texts", 0), ("max_tokens", 2**31)],
)
def test_limits_out_of_range(name: str, value: int) -> None:
    with pytest.raises(UsageError, match=name.replace("_", " ")):
        Limits(**{name: value})
