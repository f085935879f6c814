"""The key: who needs one, and that nobody else sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from bitexport.errors import UsageError
from bitexport.serve import Server
from bitexport.serve.address import check_address, check_key, is_loopback, url_of
from bitexport.serve.command import environment
from tests.support.api_client import Client
from tests.support.cli import one_line

KEY = "0123456789-secret"
BODY = {"prompt": "a", "max_tokens": 1}


@pytest.fixture(scope="module")
def locked(model: Path) -> Iterator[Server]:
    with Server(model, port=0, slots=1, api_key=KEY) as server:
        yield server


def test_without_the_key_there_is_no_answer(locked: Server) -> None:
    for client in (Client(locked.port), Client(locked.port, key="wrong"), Client(locked.port, key="")):
        assert client.ask("/v1/completions", BODY).status == 401
        assert client.ask("/v1/models").status == 401
        assert client.ask("/metrics").status == 401
    assert Client(locked.port, key=KEY).ask("/v1/completions", BODY).status == 200
    assert Client(locked.port).ask("/health").status == 200


def test_a_key_opens_the_server_to_other_names(locked: Server) -> None:
    client = Client(locked.port, key=KEY)
    headers = {"Host": "models.example.com", "Origin": "https://models.example.com"}
    assert client.ask("/v1/completions", BODY, headers).status == 200


def test_the_page_comes_without_the_key(locked: Server) -> None:
    for path in ("/", "/chat.css", "/chat.js"):
        assert Client(locked.port).ask(path).status == 200


def test_the_key_is_not_in_the_command_line(locked: Server) -> None:
    assert KEY.encode() not in Path(f"/proc/{locked.pid}/cmdline").read_bytes()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com"])
def test_other_addresses_need_a_key(model: Path, host: str) -> None:
    with pytest.raises(UsageError, match="BITEXPORT_API_KEY"):
        Server(model, host=host)
    check_address(host, 8080, KEY)


@pytest.mark.parametrize("host", ["127.0.0.1,0.0.0.0", "/tmp/a.sock", "a.sock", "", "a b"])
def test_a_host_is_one_address(host: str) -> None:
    with pytest.raises(UsageError, match="one IP address"):
        check_address(host, 8080, KEY)


@pytest.mark.parametrize("key", ["", "a,b", "with space", "ключ", 'a"b', "a\nb"])
def test_keys_that_the_server_would_misread(key: str) -> None:
    with pytest.raises(UsageError, match="API key"):
        check_key(key)


def test_addresses() -> None:
    assert is_loopback("127.0.0.9")
    assert is_loopback("::1")
    assert not is_loopback("10.0.0.1")
    assert url_of("::1", 80) == "http://[::1]:80"
    assert url_of("0.0.0.0", 80) == "http://127.0.0.1:80"


def test_the_environment_opens_nothing(locked: Server) -> None:
    inherited = {
        "LLAMA_ARG_TOOLS": "all",
        "LLAMA_API_KEY": "other",
        "AIP_MODE": "PREDICTION",
        "HF_TOKEN": "x",
        "BITEXPORT_API_KEY": "y",
        "BITEXPORT_TIER": "avx2",
    }
    found = environment(locked.plan, inherited)
    assert set(found) == {"BITEXPORT_TIER", "BITEXPORT_SERVE", "LLAMA_API_KEY", "LD_LIBRARY_PATH"}
    assert found["LLAMA_API_KEY"] == KEY


def test_refused_on_the_command_line(model: Path, run_cli: Callable[..., CompletedProcess[str]]) -> None:
    message = one_line(run_cli("serve", model, "--host", "0.0.0.0"), 2)
    assert "every machine that reaches this one" in message
