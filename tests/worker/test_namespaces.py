"""Workers on machines of their own, as far as the network goes: namespaces, joined by virtual cables."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.support.repository import REPOSITORY
from tests.support.workers import WorkerProcess, worker_process

PROMPT = "def add(left, right):\n    return left"


def ip(*arguments: str) -> CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)


def why_not() -> str:
    """Why there can be no namespaces here; empty if there can."""
    if shutil.which("ip") is None:
        return "the program ip is not installed; apt-get install iproute2"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"bx{os.getpid()}"
    commands = (
        ("netns", "add", name),
        ("-n", name, "link", "add", "to", "type", "veth", "peer", "name", "from"),
        ("netns", "exec", name, "true"),
    )
    failed = next((done for done in (ip(*words) for words in commands) if done.returncode != 0), None)
    ip("netns", "del", name)
    return "" if failed is None else f"no network namespaces here: {failed.stderr.strip()}"


@dataclass(frozen=True)
class Network:
    """A namespace with the client, and one for each worker.

    Attributes:
        client: the name of the client's namespace.
        names: those of the workers.
        hosts: the workers' addresses.
    """

    client: str
    names: list[str]
    hosts: list[str]

    def run(self, *arguments: str) -> CompletedProcess[str]:
        """``bitexport`` on the client's machine."""
        return subprocess.run(
            self.command(*arguments), cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
        )

    def command(self, *arguments: str) -> list[str]:
        return ["ip", "netns", "exec", self.client, sys.executable, "-m", "bitexport", *arguments]

    def cut(self, number: int) -> None:
        """Take out the cable to a worker."""
        assert ip("-n", self.client, "link", "set", f"to{number}", "down").returncode == 0


@pytest.fixture
def network() -> Iterator[Network]:
    if reason := why_not():
        pytest.skip(reason)
    client = f"bxc{os.getpid()}"
    names = [f"bxw{number}-{os.getpid()}" for number in range(2)]
    with ExitStack() as stack:
        for name in (client, *names):
            assert ip("netns", "add", name).returncode == 0
            stack.callback(ip, "netns", "del", name)
            assert ip("-n", name, "link", "set", "lo", "up").returncode == 0
        hosts = []
        for number, name in enumerate(names):
            here, there = f"10.77.{number}.1", f"10.77.{number}.2"
            cable = ("link", "add", f"to{number}", "netns", client, "type", "veth")
            assert ip(*cable, "peer", "name", "uplink", "netns", name).returncode == 0
            for space, end, address in ((client, f"to{number}", here), (name, "uplink", there)):
                assert ip("-n", space, "addr", "add", f"{address}/24", "dev", end).returncode == 0
                assert ip("-n", space, "link", "set", end, "up").returncode == 0
            hosts.append(there)
        yield Network(client, names, hosts)


@pytest.fixture
def workers(network: Network) -> Iterator[list[WorkerProcess]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(worker_process("--host", host, prefix=("ip", "netns", "exec", name)))
            for name, host in zip(network.names, network.hosts, strict=True)
        ]


def test_machines_give_the_same_text(network: Network, workers: list[WorkerProcess], model: Path) -> None:
    common = (
        "run",
        str(model),
        "-p",
        PROMPT,
        "-n",
        "16",
        "--temperature",
        "0",
        "--ctx",
        "128",
        "-t",
        "1",
        "-q",
    )
    alone = network.run(*common)
    together = network.run(*common, "--workers", ",".join(worker.address for worker in workers))
    assert together.returncode == 0, together.stderr
    assert together.stdout == alone.stdout
    assert len(alone.stdout) > 16


def test_a_machine_that_is_cut_off_is_an_error(
    network: Network, workers: list[WorkerProcess], model: Path
) -> None:
    addresses = ",".join(worker.address for worker in workers)
    options = ("-n", "100000", "--ctx", "4096", "-t", "1", "--workers", addresses)
    process = subprocess.Popen(
        network.command("run", str(model), "-p", PROMPT, *options),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.read(1)
    start = time.monotonic()
    network.cut(1)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"error: worker {workers[1].address} is lost" in said
    assert time.monotonic() - start < 60
    # the worker notices, too, and takes the next client
    workers[1].wait_for("left", seconds=60)


def test_a_machine_that_is_not_there_is_an_error(network: Network, model: Path) -> None:
    network.cut(0)
    start = time.monotonic()
    done = network.run("run", str(model), "-p", PROMPT, "--workers", network.hosts[0])
    assert done.returncode == 1
    assert f"error: worker {network.hosts[0]}:50052 cannot be reached: " in done.stderr
    assert time.monotonic() - start < 60
