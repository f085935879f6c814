"""Busy processes beside a measurement, as on a machine that others use, too."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

from bitexport.errors import UsageError
from bitexport.runtime.ggml import processors

#: The most busy processes for each processor.
_MOST_PER_PROCESSOR = 8

# Ends with its parent, however that ends: Linux kills it, and elsewhere the pipe to it closes.
_PROGRAM = """
import os, sys, threading
def until_the_pipe_closes():
    sys.stdin.buffer.read()
    os._exit(0)
try:
    import ctypes
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
except (ImportError, OSError, AttributeError, TypeError):
    pass  # not Linux
threading.Thread(target=until_the_pipe_closes, daemon=True).start()
sys.stdout.write("busy\\n")
sys.stdout.flush()
number = 0
while True:
    number = (number * 5 + 1) % 1000003
"""


class Company:
    """Busy processes, each of which keeps a processor busy if it gets one.

    Args:
        count: how many; 0 for none.

    Raises:
        UsageError: ``count`` is negative or far more than this machine has processors.
    """

    def __init__(self, count: int) -> None:
        most = _MOST_PER_PROCESSOR * processors()
        if not 0 <= count <= most:
            raise UsageError(
                f"{count} busy processes were requested; expected 0 to {most} on {processors()} processors"
            )
        self.count = count
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Company:
        try:
            for _ in range(self.count):
                process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _PROGRAM],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    start_new_session=True,  # Ctrl-C goes to this process, which ends them
                )
                self._processes.append(process)
            for process in self._processes:
                assert process.stdout is not None
                process.stdout.readline()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes. Closing twice does nothing."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        self._processes.clear()

    def share(self, threads: int) -> float:
        """The share of a processor that is fair for each of some threads beside these processes, up to 1."""
        return min(1.0, processors() / (threads + self.count))

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Stop the processes for the duration of the block, which measures what the machine has."""
        self._send("SIGSTOP")
        try:
            yield
        finally:
            self._send("SIGCONT")

    def _send(self, name: str) -> None:
        if number := getattr(signal, name, None):  # not on every system
            for process in self._processes:
                os.kill(process.pid, number)
