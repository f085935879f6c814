"""Starting and stopping: nothing is lost, and every failure is one line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from bitexport.errors import BitexportWarning, GGUFError, NativeLibraryError, TokenizerError, UsageError
from bitexport.runtime.completion import Completion, Sampling
from bitexport.runtime.threads import default_threads
from bitexport.serve import Limits, RequestRecord, Server
from bitexport.serve.command import arguments
from bitexport.system.native_files import DIRECTORY_VARIABLE
from tests.support.api_client import Client
from tests.support.cli import one_line
from tests.support.gguf_files import as_microsoft_writes, rewritten
from tests.support.repository import REPOSITORY

Cli = Callable[..., "CompletedProcess[str]"]
PROMPT = "def add(left, right):\n"
LONG = {"prompt": PROMPT, "max_tokens": 3000, "temperature": 0, "ignore_eos": True}


@contextmanager
def command(*arguments: str | Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """``bitexport serve`` in a process of its own; it is killed if the test leaves it running."""
    with subprocess.Popen(
        [sys.executable, "-m", "bitexport", "serve", *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ready(process: subprocess.Popen[str]) -> dict[str, object]:
    """The document of ``--json``, once the server takes requests."""
    assert process.stdout is not None
    document = ""
    for line in process.stdout:
        document += line
        try:
            found: dict[str, object] = json.loads(document)
        except ValueError:
            continue
        return found
    raise AssertionError(process.communicate()[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_finish(long_model: Path, number: signal.Signals) -> None:
    with command(long_model, "--port", "0", "--ctx", "4096", "--json") as process:
        client = Client(int(str(ready(process)["port"])))
        stream = client.events("/v1/completions", LONG)
        pieces = [next(stream)]
        process.send_signal(number)
        pieces += stream
        assert pieces[-1]["choices"][0]["finish_reason"] == "length"
        assert pieces[-1]["usage"]["completion_tokens"] == 3000
        output, log = process.communicate(timeout=60)
        assert process.returncode == 0, log
        assert output == ""
        assert "stopped after 1 request and 3000 generated tokens" in log
        assert "Traceback" not in log
        with pytest.raises(ConnectionRefusedError):
            client.ask("/health")


def test_a_second_interrupt_ends_at_once(long_model: Path) -> None:
    with command(long_model, "--port", "0", "--ctx", "32768", "--json") as process:
        client = Client(int(str(ready(process)["port"])))
        stream = client.events("/v1/completions", {**LONG, "max_tokens": 32000})
        next(stream)
        process.send_signal(signal.SIGINT)
        # the first one has been handled when new requests are refused
        while client.ask("/v1/completions", {"prompt": "a", "max_tokens": 1}).status == 200:
            pass
        process.send_signal(signal.SIGINT)
        output, log = process.communicate(timeout=20)
    assert (process.returncode, output) == (130, "")
    assert log.splitlines()[-1] == "interrupted"
    stream.close()


def test_new_requests_are_refused_while_stopping(long_model: Path) -> None:
    server = Server(long_model, port=0, slots=2, threads=1, ctx=4096)
    server.start()
    client = Client(server.port)
    stream = client.events("/v1/completions", LONG)
    next(stream)
    summaries = []
    stopping = threading.Thread(target=lambda: summaries.append(server.stop()))
    stopping.start()
    statuses = set()
    while (status := client.ask("/v1/completions", {"prompt": "a", "max_tokens": 1}).status) == 200:
        statuses.add(status)
    assert status == 503
    assert list(stream)[-1]["choices"][0]["finish_reason"] == "length"
    stopping.join()
    assert summaries[0].cut_off == 0


def test_a_request_that_takes_too_long_is_cut_off(long_model: Path) -> None:
    server = Server(long_model, port=0, slots=1, threads=1, ctx=4096, limits=Limits(stop_seconds=0))
    server.start()
    stream = Client(server.port).events("/v1/completions", LONG)
    next(stream)
    assert server.stop().cut_off == 1
    with pytest.raises((AssertionError, OSError)):  # the client notices
        list(stream)


def test_the_server_ends_with_its_parent(model: Path) -> None:
    with command(model, "--port", "0", "--json") as process:
        document = ready(process)
        server = int(str(document["pid"]))
        process.kill()
        process.wait()
        # its records go to a pipe that we do not hold, so its end is seen on the port
        client = Client(int(str(document["port"])))
        for _ in range(200):
            try:
                client.ask("/health")
            except OSError:
                break
            threading.Event().wait(0.05)
        else:
            os.kill(server, signal.SIGKILL)
            raise AssertionError("it is still there")


def test_lines_on_stderr(model: Path) -> None:
    with command(model, "--port", "0", "--slots", "1") as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        client = Client(int(url.rpartition(":")[2]))
        client.complete(PROMPT, 4)
        client.ask("/health")
        client.ask("/nothing")
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
    lines = log.splitlines()
    assert lines[0].startswith(f"{model.name}: 1 slot of 256 tokens, ")
    assert " 127.0.0.1 POST /v1/completions 200 " in lines[1]
    assert "4 generated" in lines[1]
    assert " GET /nothing 404 " in lines[2]
    assert lines[3] == "stopped after 3 requests and 4 generated tokens"
    assert len(lines) == 4


def test_quiet_prints_nothing(model: Path) -> None:
    with command(model, "--port", "0", "--quiet") as process:
        assert process.stdout is not None
        Client(int(process.stdout.readline().strip().rpartition(":")[2])).complete(PROMPT, 1)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60) == ("", "")


def test_the_key_of_the_command_is_hidden(model: Path) -> None:
    with command(model, "--port", "0", "--json", "--api-key", "visible-secret") as process:
        port = int(str(ready(process)["port"]))
        shown = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert b"--api-key" in shown
        assert b"visible-secret" not in shown
        assert Client(port, key="visible-secret").ask("/v1/models").status == 200
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    with command(model, "--port", "0", "--json", BITEXPORT_API_KEY="from-environment") as process:
        port = int(str(ready(process)["port"]))
        assert Client(port).ask("/v1/models").status == 401
        assert Client(port, key="from-environment").ask("/v1/models").status == 200


def test_a_port_in_use(model: Path, run_cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        message = one_line(run_cli("serve", model, "--port", port), 2)
    assert f"127.0.0.1 port {port}: address already in use" in message
    assert "--port (0 for any free one)" in message


def test_a_damaged_file(model: Path, tmp_path: Path, run_cli: Cli) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(model.read_bytes()[:-1000])
    assert "damaged.gguf" in one_line(run_cli("serve", damaged), 1)
    (tmp_path / "text.gguf").write_text("not GGUF at all")
    assert "bitexport convert" in one_line(run_cli("serve", tmp_path / "text.gguf"), 1)
    assert "no such file" in one_line(run_cli("serve", tmp_path / "missing.gguf"), 1)


def test_damage_that_only_libllama_finds(model: Path, tmp_path: Path) -> None:
    file = rewritten(
        model, tmp_path / "x.gguf", rename=lambda name: None if name == "output_norm.weight" else name
    )
    with pytest.raises(GGUFError, match=r"output_norm\.weight"), Server(file, port=0):
        pass


def test_assumptions_reach_the_server(model: Path, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="pre-tokenizer"):
        Server(as_microsoft_writes(model, tmp_path / "microsoft.gguf"))
    with pytest.warns(BitexportWarning):
        server = Server(rewritten(model, tmp_path / "old.gguf", architecture="bitnet-25"), port=0, slots=1)
    with server:
        text = Client(server.port).complete(PROMPT, 8)["choices"][0]["text"]
    sampling = Sampling(temperature=0)
    assert text == "".join(Completion(model, PROMPT, sampling=sampling, max_tokens=8, threads=2))


def test_overrides_are_on_the_command_line(server: Server) -> None:
    from dataclasses import replace

    plan = replace(server.plan, overrides={"tokenizer.ggml.pre": "qwen2"})
    found = arguments(plan)
    assert found[found.index("--override-kv") + 1] == "tokenizer.ggml.pre=str:qwen2"


def test_threads_and_tier(model: Path, run_cli: Cli) -> None:
    found = arguments(Server(model, port=0).plan)
    assert found[found.index("--threads") + 1] == str(default_threads())
    done = run_cli("serve", model, env={"BITEXPORT_TIER": "abacus"})
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: BITEXPORT_TIER=abacus" in done.stderr
    with command(model, "--port", "0", "--json", BITEXPORT_TIER="scalar") as process:
        document = ready(process)
    assert document["tier"] == "scalar"


@pytest.mark.parametrize(
    "options",
    [{"slots": 0}, {"slots": 257}, {"ctx": 10**7}, {"threads": 10**6}, {"port": 70000}, {"cache_mib": -1}],
)
def test_options_out_of_range(model: Path, options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"expected"):
        Server(model, **options)  # type: ignore[arg-type]


def test_a_missing_program(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    servers = [Server(model, port=0) for _ in range(2)]
    monkeypatch.setattr("bitexport.system.native_files.find_library_dir", lambda: tmp_path)
    with pytest.raises(NativeLibraryError, match="make native"):
        servers[0].start()
    (tmp_path / "llama-server").write_text("")
    with pytest.raises(NativeLibraryError, match="executable"):
        servers[1].start()


def test_a_server_that_crashes(model: Path) -> None:
    server = Server(model, port=0, slots=1)
    server.start()
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(NativeLibraryError, match="signal 9"):
        server.wait()


def test_stopped_as_soon_as_it_is_ready(model: Path) -> None:
    """llama-server is ready before it waits for requests; an end in between must not be forgotten."""
    for _ in range(20):
        server = Server(model, port=0, slots=1)
        server.start()
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 10


def test_a_callback_that_fails_stops_nothing(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def fail(record: RequestRecord) -> None:
        calls.append(record)
        raise ValueError("a mistake")

    with Server(model, port=0, slots=1, on_request=fail) as server:
        client = Client(server.port)
        assert [client.complete(PROMPT, 1)["choices"][0]["index"] for _ in range(3)] == [0, 0, 0]
        summary = server.stop()
    assert summary.requests == 3
    assert len(calls) == 1
    assert "on_request failed" in caplog.text


@pytest.mark.parametrize("host", ["localhost", "127.0.0.2", "::1"])
def test_addresses_of_this_machine(model: Path, host: str) -> None:
    with (
        Server(model, host=host, port=0, slots=1) as server,
        urllib.request.urlopen(f"{server.url}/v1/models", timeout=10) as answer,
    ):
        assert json.load(answer)["data"][0]["id"] == model.stem


def test_before_the_start(model: Path) -> None:
    with pytest.raises(UsageError, match=r"start\(\)"):
        _ = Server(model).pid


def test_the_variable_names_another_folder(tmp_path: Path, model: Path, run_cli: Cli) -> None:
    message = one_line(run_cli("serve", model, env={DIRECTORY_VARIABLE: str(tmp_path)}), 1)
    assert DIRECTORY_VARIABLE in message
