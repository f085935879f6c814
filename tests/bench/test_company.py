"""Busy processes are busy, pause for the limits, and always end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bitexport.bench.company import Company
from bitexport.errors import UsageError
from bitexport.runtime.ggml import processors
from tests.support.repository import REPOSITORY

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc, which only Linux has")


def state(pid: int) -> str:
    """A process's state as in /proc: R, S, T (stopped), Z; "" if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_none() -> None:
    with Company(0) as company, company.away():
        assert company.share(processors()) == 1.0


@pytest.mark.parametrize("count", [-1, 10_000])
def test_a_number_out_of_range(count: int) -> None:
    with pytest.raises(UsageError, match=f"{count} busy processes were requested; expected 0 to"):
        Company(count)


def test_the_fair_share() -> None:
    company = Company(processors())
    assert company.share(processors()) == 0.5
    assert Company(1).share(processors()) == processors() / (processors() + 1)
    assert Company(0).share(2 * processors()) == 0.5


@linux
def test_they_are_busy_pause_and_end() -> None:
    with Company(2) as company:
        pids = [process.pid for process in company._processes]
        assert until(lambda: all(processor_seconds(pid) > 0.1 for pid in pids))
        with company.away():
            assert until(lambda: all(state(pid) == "T" for pid in pids))
        assert until(lambda: all(state(pid) in "RS" for pid in pids))
    assert not any(map(state, pids))


@linux
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("paused", [False, True])
def test_they_end_with_their_parent(how: signal.Signals, paused: bool) -> None:
    code = (
        "import time\n"
        "from contextlib import nullcontext\n"
        "from bitexport.bench.company import Company\n"
        f"with Company(2) as company, company.away() if {paused} else nullcontext():\n"
        "    print(*(process.pid for process in company._processes), flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.send_signal(how)
        parent.wait(timeout=30)
    # an orphan may stay a zombie where nothing reaps it
    assert until(lambda: all(state(pid) in ("", "Z") for pid in pids)), [state(pid) for pid in pids]


@linux
def test_bench_beside_a_busy_process(gguf_of: Callable[..., Path], run_cli: Callable[..., object]) -> None:
    numbers = ("--load", "1", "-t", "1", "--prompt-tokens", "8", "-n", "2", "-r", "1")
    result: subprocess.CompletedProcess[str]
    result = run_cli("bench", gguf_of("packed-multiply"), *numbers, "--json")  # type: ignore[assignment]
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    share = min(1.0, processors() / 2)
    assert document["load"] == 1
    assert [row["fair_share"] for row in document["rows"]] == [share, share]
    result = run_cli("bench", gguf_of("packed-multiply"), *numbers)  # type: ignore[assignment]
    shown = " ".join(result.stdout.split())
    assert "beside 1 busy process, which paused while limits were measured" in shown
    assert f"fair share of a processor: {share:.0%} for 1 thread" in shown
