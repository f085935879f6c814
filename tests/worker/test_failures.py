"""What goes wrong between machines is one clear error, soon, and never a hang or a crash."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import CompletedProcess

import pytest

import bitexport
from bitexport.errors import UsageError, WorkerError
from bitexport.runtime.completion import Completion, Sampling
from bitexport.runtime.remote import identity
from bitexport.serve import Server
from bitexport.worker import Event, Worker
from tests.support.api_client import Client
from tests.support.cli import one_line
from tests.support.repository import REPOSITORY
from tests.support.tiny_models import Shape
from tests.support.workers import WorkerProcess, worker_process

RunCli = Callable[..., CompletedProcess[str]]
GREEDY = Sampling(temperature=0)
PROTOCOL = bytes([7, 0, 0])


@contextmanager
def peer(answer: bytes | None) -> Iterator[str]:
    """Something else that listens: it answers a greeting with these bytes, or never (None)."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            with suppress(OSError):
                client, _ = listener.accept()
                with client:
                    greeted = b""
                    while len(greeted) < 1 + 8 + 24:
                        greeted += client.recv(4096)
                    if answer is not None:
                        client.sendall(answer)
                    client.recv(1)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def greeting(who: bytes, flags: int = 0) -> bytes:
    body = PROTOCOL + bytes([flags]) + who.ljust(24, b"\0")
    return len(body).to_bytes(8, "little") + body


def test_nobody_there_is_one_line(model: Path, run_cli: RunCli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    done = run_cli("run", model, "-p", "a", "--workers", f"127.0.0.1:{port}")
    line = one_line(done, 1)
    assert line == (
        f"error: worker 127.0.0.1:{port} cannot be reached: connection refused; start `bitexport worker` "
        "there, and check the address and the firewall"
    )


def test_an_unknown_name_is_named(model: Path) -> None:
    with pytest.raises(
        WorkerError, match=r"worker no-such-name.invalid:50052 cannot be reached: .* known name"
    ):
        bitexport.load(model, workers="no-such-name.invalid")


def test_a_peer_that_never_answers_is_given_up(model: Path) -> None:
    start = time.monotonic()
    with peer(None) as address, pytest.raises(WorkerError, match=f"worker {address} does not answer"):
        bitexport.load(model, workers=address)
    assert 4 < time.monotonic() - start < 15


def test_another_build_is_refused_with_both_versions(model: Path) -> None:
    with (
        peer(greeting(b"bx 9.8.7 0a1b2c3d")) as address,
        pytest.raises(WorkerError, match=f"worker {address} is bitexport 9.8.7 .build 0a1b2c3d.") as caught,
    ):
        bitexport.load(model, workers=address)
    assert identity() in str(caught.value)
    assert bitexport.__version__ in identity()


def test_llama_cpps_own_server_is_refused(model: Path) -> None:
    with peer(greeting(b"")) as address, pytest.raises(WorkerError, match=r"rpc-server \(protocol 7.0.0\)"):
        bitexport.load(model, workers=address)


def test_a_web_server_is_refused(model: Path) -> None:
    with (
        peer(b"HTTP/1.1 400 Bad Request\r\n\r\n") as address,
        pytest.raises(WorkerError, match=f"worker {address} "),
    ):
        bitexport.load(model, workers=address)


def test_a_worker_refuses_clients_of_another_build(one: WorkerProcess) -> None:
    host, port = one.address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(b"\x0e" + (24).to_bytes(8, "little") + b"bx 9.8.7 0a1b2c3d".ljust(24, b"\0"))
        answer = b""
        while part := client.recv(4096):
            answer += part
    assert identity().split()[1].encode() in answer  # who it is, and then why it ends
    assert b"and this is bitexport 9.8.7 (build 0a1b2c3d)" in answer
    one.wait_for("dropped")


def test_a_busy_worker_says_so(model: Path, one: WorkerProcess) -> None:
    loaded = bitexport.load(model, n_ctx=64, workers=one.address)
    program = f"import bitexport; bitexport.load({str(model)!r}, workers={one.address!r})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "serves another program" in done.stderr
    assert loaded("def a", max_tokens=4)["choices"][0]["text"] is not None
    loaded.close()
    one.wait_for("refused")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_ends_is_an_error(model: Path, number: signal.Signals) -> None:
    with worker_process() as started:
        completion = Completion(
            model, "def a", sampling=GREEDY, max_tokens=10**6, n_ctx=4096, threads=1, workers=started.address
        )
        pieces = iter(completion)
        next(pieces)
        code = started.end(number)
        start = time.monotonic()
        with pytest.raises(WorkerError, match=f"worker {started.address} .*; start it again") as caught:
            for _ in pieces:
                pass
    assert time.monotonic() - start < 10
    assert code == (-9 if number == signal.SIGKILL else 0)
    if number == signal.SIGTERM:
        assert "was stopped" in str(caught.value)


def test_a_batch_that_takes_a_worker_long_is_waited_for(gguf_of: Callable[..., Path]) -> None:
    """A worker that computes does not read; a connection on which data waits for 30 s would end."""
    large = gguf_of("packed-multiply", shape=Shape(hidden=1024, ffn=2048, layers=4, context=4096))
    with worker_process() as started:
        model = bitexport.load(large, n_ctx=4096, n_threads=1, workers=started.address)
        tokens = model.tokenize(b"def a(b): return b\n" * 2000)[:4000]
        pauses = threading.Thread(target=pause_while_it_computes, args=(started, 35))
        start = time.monotonic()
        pauses.start()
        model.eval(tokens)
        seconds = time.monotonic() - start
        pauses.join()
        assert seconds > 35
        assert model.n_tokens == len(tokens)
        model.close()


def pause_while_it_computes(worker: WorkerProcess, seconds: float) -> None:
    """Stops a worker that has read all that was sent: one stopped while it reads counts as lost."""
    while True:
        time.sleep(0.1)
        worker.process.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        if not bytes_on_the_way(int(worker.address.rpartition(":")[2])):
            break
        worker.process.send_signal(signal.SIGCONT)
    time.sleep(seconds)
    worker.process.send_signal(signal.SIGCONT)


def bytes_on_the_way(port: int) -> int:
    """How many bytes were sent to a port of this machine, and not yet taken by its side of the connection."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(row[4].partition(":")[0], 16) for row in rows if row[2].endswith(f":{port:04X}"))


def generate_for_long(model: Path, worker: WorkerProcess) -> subprocess.Popen[str]:
    """A process that generates, of which the first character was read."""
    command = [sys.executable, "-m", "bitexport", "run", str(model), "-p", "def a", "-n", "100000"]
    process = subprocess.Popen(
        [*command, "--ctx", "4096", "-t", "1", "--workers", worker.address],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.read(1)
    return process


def test_run_exits_with_1_when_a_worker_dies(model: Path) -> None:
    with worker_process() as started:
        process = generate_for_long(model, started)
        started.end(signal.SIGKILL)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"error: worker {started.address} is lost" in said
    assert "Traceback" not in said


def test_a_worker_works_again_after_a_client_was_killed(model: Path, one: WorkerProcess) -> None:
    process = generate_for_long(model, one)
    process.kill()
    process.communicate()
    loaded = bitexport.load(model, n_ctx=64, workers=one.address)
    loaded.close()


def test_a_server_ends_when_its_worker_dies(model: Path) -> None:
    with worker_process() as started:
        server = Server(model, port=0, slots=1, ctx=128, threads=1, workers=started.address)
        server.start()
        client = Client(server.port)
        body = {"prompt": "def a", "max_tokens": 4, "temperature": 0}
        assert client.ask("/v1/completions", body).status == 200
        started.end(signal.SIGKILL)
        answer = client.ask("/v1/completions", body)
    assert answer.status == 500
    assert answer.error.startswith(f"worker {started.address} is lost")
    with pytest.raises(WorkerError, match=f"worker {started.address} is lost"):
        server.wait()


def test_memory_is_limited(model: Path) -> None:
    with (
        worker_process("--memory", "0.001") as started,
        pytest.raises(WorkerError, match=r"may use 0.00 GiB of memory, .* more are needed; give it more"),
    ):
        bitexport.load(model, n_ctx=64, workers=started.address, layers=[1, 3])


def test_a_damaged_tensor_is_named_and_the_worker_lives(
    model: Path, one: WorkerProcess, tmp_path: Path
) -> None:
    from bitexport.gguf.reader import read_gguf

    header = read_gguf(model)
    tensor = next(each for each in header.tensors if each.name == "blk.3.ffn_up.weight")
    damaged = tmp_path / "damaged.gguf"
    data = bytearray(model.read_bytes())
    data[tensor.offset] = 0xFF
    damaged.write_bytes(data)
    with pytest.raises(WorkerError, match=r"blk.3.ffn_up.weight' holds code 3"):
        bitexport.load(damaged, n_ctx=64, trial=False, workers=one.address)
    bitexport.load(model, n_ctx=64, workers=one.address).close()


def test_a_worker_in_this_process(model: Path) -> None:
    events: list[Event] = []
    with Worker(port=0, threads=1, memory_gib=0.25, on_event=events.append) as started:
        with pytest.raises(UsageError, match="another worker in this process"):
            Worker(port=0, threads=1)
        program = (
            f"import bitexport; m = bitexport.load({str(model)!r}, n_ctx=64, workers={started.address!r})\n"
            "print(m('def a', max_tokens=4)['usage']['completion_tokens'])"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.stdout == "4\n", done.stderr
    assert [event.kind for event in events][:1] == ["connected"]
    assert events[-1].kind == "left"
    with Worker(port=0, threads=1, memory_gib=0.25) as again:
        assert again.port != 0


def test_a_port_in_use_is_named(run_cli: RunCli, one: WorkerProcess) -> None:
    port = one.address.split(":")[1]
    line = one_line(run_cli("worker", "--port", port), 2)
    assert f"cannot listen on 127.0.0.1 port {port}: address already in use" in line


def test_a_public_address_is_refused(run_cli: RunCli) -> None:
    assert "--allow-public" in one_line(run_cli("worker", "--host", "0.0.0.0"), 2)


def test_more_memory_than_is_free_is_refused(run_cli: RunCli) -> None:
    assert "offer less with --memory" in one_line(run_cli("worker", "--port", "0", "--memory", "1e6"), 2)


def test_ctrl_c_ends_a_worker() -> None:
    with worker_process() as started:
        assert started.end(signal.SIGINT) == 0


def test_ctrl_c_ends_a_worker_that_has_a_client(model: Path) -> None:
    for _ in range(4):
        with worker_process() as worker:
            completion = Completion(model, "def", sampling=GREEDY, max_tokens=2, workers=worker.address)
            assert worker.end(signal.SIGINT) == 0
            with pytest.raises(WorkerError):
                list(completion)


def test_a_worker_ends_although_a_stranger_goes_on_sending() -> None:
    with worker_process() as worker:
        host, port = worker.address.split(":")
        with socket.create_connection((host, int(port))) as stranger:
            stop = threading.Event()

            def send() -> None:
                with suppress(OSError):
                    stranger.sendall(b"GET / HTTP/1.1\r\nHost: somebody else entirely\r\n")
                    while not stop.wait(0.3):
                        stranger.sendall(b"x")

            sender = threading.Thread(target=send)
            sender.start()
            worker.wait_for("connected")
            try:
                assert worker.end() == 0
            finally:
                stop.set()
                sender.join()


FORK = """
import os, sys
import bitexport
model = bitexport.load(sys.argv[1], n_ctx=64, workers=sys.argv[2], verbose=False)
child = os.fork()
if child == 0:
    if sys.argv[3] == "close":
        model.close()
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print(model.create_completion("def", max_tokens=2, temperature=0)["usage"]["completion_tokens"])
"""


@pytest.mark.parametrize("how", ["close", "exit"])
def test_a_forked_child_leaves_the_connections_alone(model: Path, how: str) -> None:
    with worker_process() as worker:
        done = subprocess.run(
            [sys.executable, "-c", FORK, str(model), worker.address, how],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_arguments_that_place_layers_are_for_one_machine(model: Path) -> None:
    with worker_process() as worker, pytest.raises(UsageError, match="n_gpu_layers and workers exclude"):
        bitexport.load(model, workers=worker.address, n_gpu_layers=1)
