"""The machine's limits: the speeds that decode and prefill are compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from bitexport.runtime.ggml import cpu_library

#: Much larger than any cache.
_BUFFER_BYTES = 256 << 20

#: How long a pass of the multiply-add loop takes: much longer than starting the threads.
_PASS_SECONDS = 0.02

#: Bytes that the native loop reads per step.
_STRIDE = 1024

#: A limit that changes by more than this fraction during a test makes the test worthless.
MAX_CHANGE = 0.2


@dataclass(frozen=True, slots=True)
class Limit:
    """The machine's speed with a number of threads, at one moment.

    Attributes:
        memory_gbps: speed of reading memory sequentially, in 1e9 bytes per second.
        multiply_add_gps: speed of the multiply-add instruction of the kernels in use, on registers only, in
            1e9 multiply-adds of 8-bit integers per second; None if the kernels have none (scalar).
    """

    memory_gbps: float
    multiply_add_gps: float | None

    def change(self, other: Limit) -> float:
        """How much the two differ: the larger of the two speeds' changes, as a fraction of the lower one."""
        pairs = [(self.memory_gbps, other.memory_gbps)]
        if self.multiply_add_gps and other.multiply_add_gps:
            pairs.append((self.multiply_add_gps, other.multiply_add_gps))
        return max(max(pair) / min(pair) - 1 for pair in pairs)

    def best(self, other: Limit) -> Limit:
        """The higher of each speed: other work can slow a measurement down, but nothing speeds it up."""
        both = [limit.multiply_add_gps for limit in (self, other) if limit.multiply_add_gps is not None]
        return Limit(max(self.memory_gbps, other.memory_gbps), max(both, default=None))


class LimitMeter:
    """Measures :class:`Limit`. Uses 256 MiB as long as it exists.

    Raises:
        NativeLibraryError: our library is missing.
    """

    def __init__(self) -> None:
        self._library = cpu_library()
        self._buffer = np.ones(_BUFFER_BYTES, dtype=np.uint8)
        self._iterations = self._calibrate()

    def measure(self, threads: int, passes: int = 3) -> Limit:
        """The best of several passes with this many threads."""
        address = self._buffer.ctypes.data
        share = _BUFFER_BYTES // threads // _STRIDE * _STRIDE  # bytes per thread

        def read(thread: int) -> None:
            self._library.bitexport_read_memory(address + thread * share, share)

        def multiply(_thread: int) -> None:
            self._library.bitexport_multiply_adds(self._iterations)

        with ThreadPoolExecutor(threads) as pool:  # ctypes releases the interpreter's lock
            memory = share * threads / _fastest(pool, read, threads, passes)
            if self._iterations == 0:
                return Limit(memory / 1e9, None)
            done = threads * self._library.bitexport_multiply_adds(1) * self._iterations
            peak = done / _fastest(pool, multiply, threads, passes)
        return Limit(memory / 1e9, peak / 1e9)

    def _calibrate(self) -> int:
        """Iterations of the multiply-add loop that take as long as a pass; 0 if there is no such loop."""
        iterations = 100_000
        start = time.perf_counter()
        if self._library.bitexport_multiply_adds(iterations) == 0:
            return 0
        return max(iterations, int(iterations * _PASS_SECONDS / (time.perf_counter() - start)))


def _fastest(pool: ThreadPoolExecutor, task: Callable[[int], None], threads: int, passes: int) -> float:
    """Seconds of the fastest pass; an extra pass before them starts the threads."""
    best = float("inf")
    for number in range(passes + 1):
        start = time.perf_counter()
        list(pool.map(task, range(threads)))
        if number:
            best = min(best, time.perf_counter() - start)
    return best
