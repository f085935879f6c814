"""Runs a function in a process of its own, with limits on memory and time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: By the clock, a process may take so many times its limit on computing: the machine may have other work.
_PATIENCE = 6

# not with -m, which would look for modules in the current folder first
_PROGRAM = """
import importlib, sys
sys.path[:] = [folder for folder in sys.path if folder]
importlib.import_module(sys.argv[1]).main(*sys.argv[2:])
"""


def python_process(module: str, *arguments: str) -> dict[str, Any]:
    """Arguments for ``subprocess``: a process that calls ``main(*arguments)`` of a module of bitexport."""
    package = str(Path(__file__).resolve().parents[2])
    inherited = os.environ.get("PYTHONPATH")
    search = package + (os.pathsep + inherited if inherited else "")
    return {
        "args": [sys.executable, "-c", _PROGRAM, module, *arguments],
        "env": {**os.environ, "PYTHONPATH": search, "MALLOC_ARENA_MAX": "2"},
        "stderr": subprocess.DEVNULL,
    }


#: The signals that end a process at a deadline: of computing, and of the clock.
_DEADLINES = frozenset({signal.SIGPROF, signal.SIGALRM})


class LimitError(Exception):
    """A process reached a limit; the message is a clause.

    Attributes:
        time: whether it was the limit on time.
    """

    def __init__(self, message: str, *, time: bool) -> None:
        super().__init__(message)
        self.time = time


def run_limited(module: str, *arguments: str, memory: int, seconds: float) -> Any:
    """What ``main(*arguments)`` of a module answers, in a process of its own; see :func:`answer`.

    Args:
        module: a module of bitexport.
        memory: the address space that the process may use, in bytes.
        seconds: its time, see :func:`deadline`.

    Raises:
        LimitError: it ended without an answer.
    """
    process = python_process(module, str(memory), str(seconds), *arguments)
    done = subprocess.run(**process, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    if done.returncode == 0 and done.stdout:
        return json.loads(done.stdout)
    code = done.returncode
    raise LimitError(ending(code, memory, seconds), time=-code in _DEADLINES)


def ending(code: int, memory: int, seconds: float) -> str:
    """Why a process under limits ended, a clause; ``code`` as in ``Popen.returncode``."""
    if -code in _DEADLINES:
        return f"takes more than {seconds:g} s"
    return f"needs more than {memory >> 20} MiB of memory, or ends its process (code {code})"


# -- in the process -----------------------------------------------------------------------------------------


def set_limits(memory: int) -> None:
    """Limit this process to ``memory`` bytes, and let a deadline end it; see :func:`deadline`.

    A lower limit of the system, as ``ulimit -v`` sets it, stays.
    """
    import resource

    inherited = resource.getrlimit(resource.RLIMIT_AS)
    memory = min([memory, *(limit for limit in inherited if limit != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # the parent's settings are inherited
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in _DEADLINES:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _DEADLINES)


def deadline(seconds: float) -> None:
    """End this process after ``seconds`` of computing, even inside one long operation; 0 for never.

    Whatever it does instead of computing, it ends after six times as long.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE * seconds)


def answer(memory: str, seconds: str, function: Callable[[], Any]) -> None:
    """Print what ``function`` returns as JSON, within limits.

    Args:
        memory, seconds: the first two arguments of the process.
    """
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # other output must not be taken for an answer
    set_limits(int(memory))
    deadline(float(seconds))
    output.write(json.dumps(function()))
    output.close()
