"""What the machine can do at best: the speeds that decode and prefill are compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from bitexport.runtime.ggml import cpu_library

#: Far beyond any cache.
_BUFFER_BYTES = 256 << 20

#: How long a pass of the multiply-add loop takes: far longer than threads need to start.
_PASS_SECONDS = 0.02

#: What our loop that reads memory goes by.
_STRIDE = 1024

#: A limit that changes by more than this fraction, within one test, makes the test worthless.
MAX_CHANGE = 0.2


@dataclass(frozen=True, slots=True)
class Limit:
    """The machine's speed with some threads, at one moment.

    Attributes:
        memory_gbps: reading memory from one end to the other, 1e9 bytes a second.
        multiply_add_gps: the multiply-add instructions of the kernels in use, on registers alone, 1e9
            multiply-adds of 8-bit integers a second; None where the kernels have none (scalar).
    """

    memory_gbps: float
    multiply_add_gps: float | None

    def change(self, other: Limit) -> float:
        """How far the two are apart: the larger of the two speeds' changes, as a fraction of the smaller."""
        pairs = [(self.memory_gbps, other.memory_gbps)]
        if self.multiply_add_gps and other.multiply_add_gps:
            pairs.append((self.multiply_add_gps, other.multiply_add_gps))
        return max(max(pair) / min(pair) - 1 for pair in pairs)

    def best(self, other: Limit) -> Limit:
        """The higher of each speed. What slows a measurement down is other work; nothing speeds it up."""
        both = [limit.multiply_add_gps for limit in (self, other) if limit.multiply_add_gps is not None]
        return Limit(max(self.memory_gbps, other.memory_gbps), max(both, default=None))


class LimitMeter:
    """Measures :class:`Limit`. Holds 256 MiB while it lives.

    Raises:
        NativeLibraryError: our library is missing.
    """

    def __init__(self) -> None:
        self._library = cpu_library()
        self._buffer = np.ones(_BUFFER_BYTES, dtype=np.uint8)
        self._iterations = self._calibrate()

    def measure(self, threads: int, passes: int = 3) -> Limit:
        """The best of some passes by this many threads."""
        address = self._buffer.ctypes.data
        part = _BUFFER_BYTES // threads // _STRIDE * _STRIDE

        def read(thread: int) -> None:
            self._library.bitexport_read_memory(address + thread * part, part)

        def multiply(_thread: int) -> None:
            self._library.bitexport_multiply_adds(self._iterations)

        with ThreadPoolExecutor(threads) as pool:  # ctypes lets go of the interpreter's lock
            memory = part * threads / _fastest(pool, read, threads, passes)
            if self._iterations == 0:
                return Limit(memory / 1e9, None)
            done = threads * self._library.bitexport_multiply_adds(1) * self._iterations
            peak = done / _fastest(pool, multiply, threads, passes)
        return Limit(memory / 1e9, peak / 1e9)

    def _calibrate(self) -> int:
        """Turns of the multiply-add loop that take a pass's time; 0 without such a loop."""
        turns = 100_000
        start = time.perf_counter()
        if self._library.bitexport_multiply_adds(turns) == 0:
            return 0
        return max(turns, int(turns * _PASS_SECONDS / (time.perf_counter() - start)))


def _fastest(pool: ThreadPoolExecutor, work: Callable[[int], None], threads: int, passes: int) -> float:
    """Seconds of the fastest pass; one before them starts the threads."""
    best = float("inf")
    for number in range(passes + 1):
        start = time.perf_counter()
        list(pool.map(work, range(threads)))
        if number:
            best = min(best, time.perf_counter() - start)
    return best
