"""Workers in processes of their own."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.support.repository import REPOSITORY


class WorkerProcess:
    """``bitexport worker``, started and listening.

    Args:
        options: of the command.
        prefix: in front of the command, such as ``("ip", "netns", "exec", "a")``.

    Attributes:
        address: where it listens.
        process: the process.
    """

    def __init__(self, *options: str, prefix: Sequence[str] = (), env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "bitexport", "worker", "--port", "0", "--threads", "1", *options],
            cwd=REPOSITORY,
            env={**os.environ, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self.address, self.said()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.put(line)

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Wait until a line with this text is on stderr."""
        while text not in self._lines.get(timeout=seconds):
            pass

    def said(self) -> str:
        """What is on stderr and was not waited for."""
        lines = []
        while not self._lines.empty():
            lines.append(self._lines.get())
        return "".join(lines)

    def close(self) -> None:
        """Kill the process unless it has ended, and close its streams."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def worker_process(*options: str, prefix: Sequence[str] = ()) -> Iterator[WorkerProcess]:
    """A worker that is killed at the end, if it has not ended before."""
    started = WorkerProcess(*options, prefix=prefix)
    try:
        yield started
    finally:
        started.close()
