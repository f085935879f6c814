"""A model in a separate process, timed on demand, so that each model can have its own environment.

``main(FILE.gguf, N_CTX)`` reads lines such as ``{"kind": "pp", "tokens": 128, "threads": 2}`` from stdin and
answers each with ``{"seconds": 0.7}``. Its first line says that the model is loaded, ``{"model": ...,
"tier": ...}``, or why not, ``{"error": ..., "kind": "GGUFError"}``. It exits when stdin ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from bitexport import errors
from bitexport.bench.measure import BenchTest, time_test
from bitexport.errors import BitexportError

_PROGRAM = "import sys; from bitexport.bench import worker; worker.main(sys.argv[1], int(sys.argv[2]))"


class Worker:
    """The parent's side of one worker.

    Args:
        path: the file; it is read into memory, not mapped, so that the system cannot evict its pages.
        n_ctx: size of the context.
        environment: variables to add to this process's environment.

    Raises:
        BitexportError: opening the model failed in the worker.
    """

    def __init__(self, path: Path, n_ctx: int, environment: Mapping[str, str]) -> None:
        package_parent = str(Path(__file__).resolve().parents[2])
        self._path = path
        inherited = os.environ.get("PYTHONPATH")
        search = package_parent + (os.pathsep + inherited if inherited else "")
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(path), str(n_ctx)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment, "PYTHONPATH": search},
            start_new_session=True,  # Ctrl-C goes to the parent, which stops the worker
        )
        try:
            ready = self._answer()
        except BaseException:
            self.close()
            raise
        self.model = str(ready["model"])
        self.tier = str(ready["tier"])

    def seconds(self, test: BenchTest, threads: int) -> float:
        """Time one run of a test."""
        assert self._process.stdin is not None
        request = {"kind": test.kind, "tokens": test.tokens, "threads": threads}
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # reading the answer reports it
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise errors.GGUFError(f"the process that ran {self._path} {_end_of(code)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind = getattr(errors, answer["kind"], BitexportError)
            raise kind(answer["error"])
        return answer

    def close(self) -> None:
        """End the process. Closing twice does nothing."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                # a request that a dead worker never read is still buffered
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _end_of(code: int) -> str:
    """How a worker ended without an answer, and what to do; ``code`` as in ``Popen.returncode``."""
    if code == -signal.SIGILL:
        return (
            "was ended by SIGILL: it reached an instruction that this CPU cannot execute; build the native "
            "libraries on this machine, with `make native`"
        )
    if code == -signal.SIGKILL:
        return "was ended by SIGKILL; is there enough memory for all files at once?"
    return f"ended with code {code}; run the file alone with `bitexport run`, which shows the reason"


def main(path: str, n_ctx: int) -> None:
    """The worker's side."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # other output must not be taken for an answer
    from bitexport.runtime.session import Session

    def answer(document: dict[str, Any]) -> None:
        answers.write(json.dumps(document) + "\n")
        answers.flush()

    try:
        with Session(path, n_ctx=n_ctx, exact=False, memory_map=False) as session:
            answer({"model": session.description, "tier": session.tier})
            threads = 0
            for line in sys.stdin:
                request = json.loads(line)
                if request["threads"] != threads:
                    threads = request["threads"]
                    session.set_threads(threads)
                answer({"seconds": time_test(session, BenchTest(request["kind"], request["tokens"]))})
    except BitexportError as error:
        answer({"error": str(error), "kind": type(error).__name__})
