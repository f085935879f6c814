"""The page's configuration of nginx does what the page says, with real servers behind a real nginx."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bitexport.serve import RequestRecord, Server
from tests.support.repository import REPOSITORY

KEY = "a-key-for-tests"
PAGE = REPOSITORY / "docs" / "several-machines.md"

pytestmark = pytest.mark.skipif(
    shutil.which("nginx") is None or shutil.which("openssl") is None,
    reason="nginx or openssl is not installed; apt-get install nginx openssl",
)


class Backend:
    """One of the servers behind nginx, and the requests that it answered."""

    def __init__(self, model: Path) -> None:
        self.requests: list[RequestRecord] = []
        self.server = Server(
            model, port=0, api_key=KEY, slots=2, ctx=128, threads=1, on_request=self.requests.append
        )
        self.server.start()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def configuration(folder: Path, port: int, backends: list[Backend], balance: str) -> str:
    """The page's, with our addresses, port and certificate in it."""
    (block,) = re.findall(r"```nginx\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    for number, backend in enumerate(backends, start=2):
        block = block.replace(f"192.168.0.{number}:8080", f"127.0.0.1:{backend.server.port}")
    block = block.replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl").replace("/etc/ssl", str(folder))
    assert "192.168" not in block
    assert "least_conn;" in block
    block = block.replace("least_conn;", balance)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{ access_log {folder}/access.log;\n{temporary}{block} }}\n"
    )


@pytest.fixture
def backends(gguf_of: Callable[..., Path]) -> Iterator[list[Backend]]:
    started = [Backend(gguf_of("packed-multiply")) for _ in range(2)]
    yield started
    for backend in started:
        backend.server.kill()


@pytest.fixture
def port(backends: list[Backend], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[int]:
    files = ["-keyout", tmp_path / "models.key", "-out", tmp_path / "models.pem"]
    subject = ["-nodes", "-days", "1", "-subj", "/CN=models.example.com"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", *subject, *files], check=True, capture_output=True
    )
    chosen = free_port()
    file = tmp_path / "nginx.conf"
    file.write_text(configuration(tmp_path, chosen, backends, getattr(request, "param", "least_conn;")))
    process = subprocess.Popen(["nginx", "-c", file, "-p", tmp_path, "-e", tmp_path / "error.log"])
    try:
        for _ in range(100):
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", chosen)) == 0:
                    break
            time.sleep(0.05)
        yield chosen
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def ask(port: int, body: dict[str, Any]) -> tuple[int, bytes]:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60)
    headers = {
        "Authorization": f"Bearer {KEY}",
        "Content-Type": "application/json",
        "Host": "models.example.com",
    }
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def answered(backends: list[Backend], count: int) -> list[int]:
    """How many requests each server answered, of this many; it reports one after its answer."""
    end = time.monotonic() + 10
    while sum(len(backend.requests) for backend in backends) < count and time.monotonic() < end:
        time.sleep(0.05)
    return [len(backend.requests) for backend in backends]


BODY = {"prompt": "def add(a, b):", "max_tokens": 4, "temperature": 0}


def test_requests_are_shared_and_pass_a_server_that_died(port: int, backends: list[Backend]) -> None:
    answers = Counter(ask(port, BODY)[0] for _ in range(8))
    assert answers == {200: 8}
    first, second = answered(backends, 8)
    assert first + second == 8
    assert first
    assert second

    backends[0].server.kill()
    assert Counter(ask(port, BODY)[0] for _ in range(6)) == {200: 6}
    assert answered(backends, 14) == [first, second + 6]


@pytest.mark.parametrize("port", ["ip_hash;"], indirect=True)
def test_a_client_can_stay_on_one_server(port: int, backends: list[Backend]) -> None:
    assert Counter(ask(port, BODY)[0] for _ in range(4)) == {200: 4}
    assert sorted(answered(backends, 4)) == [0, 4]


def test_answers_are_streamed(port: int) -> None:
    status, body = ask(port, {**BODY, "stream": True})
    assert status == 200
    assert body.count(b"data: ") >= 5
    assert body.rstrip().endswith(b"data: [DONE]")


def test_a_server_that_stops_loses_no_request(port: int, backends: list[Backend]) -> None:
    backends[0].server.stop()
    assert Counter(ask(port, BODY)[0] for _ in range(6)) == {200: 6}
