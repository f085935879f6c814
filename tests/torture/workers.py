"""Forked processes that do the cases of one kind, with limits on memory and time."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import IO, NoReturn

from tests.torture.findings import Finding

GIB = 1 << 30

#: Arenas of malloc and stacks of threads take address space that is never used.
_UNUSED_ADDRESS_SPACE = GIB // 2


#: The file with the number of the current case.
_CASE = "case"


class TortureError(Exception):
    """A case shows a defect; the message says which."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to know: the kind, the seed, and where its files are."""

    kind: ModuleType
    seed: int
    prepared: Path

    @property
    def name(self) -> str:
        """The name of the kind."""
        return kind_name(self.kind)


def kind_name(kind: ModuleType) -> str:
    """The last part of the module's name."""
    return kind.__name__.rpartition(".")[2]


class Worker:
    """A process for cases of one kind, one at a time.

    Attributes:
        case: the number of the case that it does now; None between cases.
        replies: the file descriptor to wait for.
    """

    def __init__(self, job: Job, folder: Path) -> None:
        self.job = job
        self.folder = folder
        self.case: int | None = None
        self._since = 0.0
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        requests, self._requests = os.pipe()
        self.replies, replies = os.pipe()
        _flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._requests)
            os.close(self.replies)
            _work(job, folder, os.fdopen(requests), replies)
        os.close(requests)
        os.close(replies)

    @property
    def scratch(self) -> Path:
        """The folder of the current case."""
        return self.folder / "scratch"

    def begin(self, case: int, *, again: bool = False) -> None:
        """Let it do a case."""
        self.case = case
        self._since = time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # the reply will tell
            os.write(self._requests, f"{case} {int(again)}\n".encode())

    def left(self) -> float:
        """The seconds that remain for the case."""
        return float(self._since + self.job.kind.SECONDS - time.monotonic())

    def result(self) -> str | Finding:
        """How the case ended, when ``replies`` is readable; the process lives on if it is an outcome."""
        assert self.case is not None
        reply = os.read(self.replies, 1 << 16)
        if reply:
            answer = json.loads(reply)
            if "outcome" in answer:
                self.case = None
                return str(answer["outcome"])
            self.end()
            return self._finding(answer["finding"])
        code = self.end()
        how = signal.Signals(-code).name if code < 0 else f"status {code}"
        return self._finding(f"its process ended with {how}", died=True)

    def too_slow(self) -> Finding:
        """End it, because the case takes too long."""
        self.end()
        return self._finding(f"took more than {self.job.kind.SECONDS} s", late=True)

    def _finding(self, reason: str, *, died: bool = False, late: bool = False) -> Finding:
        assert self.case is not None
        return Finding(self.job.name, self.job.seed, self.case, reason, self.folder, died, late)

    def end(self) -> int:
        """End the process and all that it started; returns how it ended, as ``Popen.returncode`` does."""
        ended, status = os.waitpid(self.pid, os.WNOHANG)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if not ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)  # it may not have a group yet
            _, status = os.waitpid(self.pid, 0)
        os.close(self.replies)
        os.close(self._requests)
        return os.waitstatus_to_exitcode(status)


def in_child(work: Callable[[], object]) -> int:
    """Do something in a forked process and return its exit code, as in ``Popen.returncode``."""
    _flush()
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            _flush()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# -- in the process -----------------------------------------------------------------------------------------


def _work(job: Job, folder: Path, requests: IO[str], replies: int) -> NoReturn:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _redirect(folder / "log")
    warnings.simplefilter("ignore")
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # no proof of a file outlives this
    scratch = folder / "scratch"
    for request in requests:
        case, again = map(int, request.split())
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        (folder / _CASE).write_text(str(case))
        os.ftruncate(2, 0)
        execute = job.kind.again if again else job.kind.execute
        answer = _answer(partial(execute, _chance(job, case), job.prepared, scratch), job.kind.MEMORY)
        _flush()
        os.write(replies, json.dumps(answer).encode())
    os._exit(0)


def case_number(scratch: Path) -> int:
    """The number of the case whose folder this is, for kinds that count."""
    return int((scratch.parent / _CASE).read_text())


def _chance(job: Job, case: int) -> random.Random:
    return random.Random(f"{job.seed}/{job.name}/{case}")


def _answer(execute: Callable[[], str], memory: int) -> dict[str, str]:
    """Do a case within limits on memory: of its address space, and of what becomes resident."""
    before = _status("VmRSS")
    _reset_peak()
    resource.setrlimit(
        resource.RLIMIT_AS, (_status("VmSize") + memory + _UNUSED_ADDRESS_SPACE, resource.RLIM_INFINITY)
    )
    try:
        outcome = execute()
    except BaseException as error:  # a panic in Rust is not an Exception
        traceback.print_exc()
        return {"finding": f"{type(error).__name__}: {error}".replace("\n", " ")[:500]}
    grown = _status("VmHWM") - before
    if grown > memory:
        return {"finding": f"added {grown >> 20} MiB to its process"}
    if not outcome.startswith(("worked", "refused")):
        return {"finding": f"the outcome {outcome!r} is neither"}
    return {"outcome": outcome}


def _status(name: str) -> int:
    """Bytes, from a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise TortureError(f"this system does not tell {name}")


def _reset_peak() -> None:
    with Path("/proc/self/clear_refs").open("w") as file:
        file.write("5")


def _redirect(log: Path) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(file, 1)
    os.dup2(file, 2)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
