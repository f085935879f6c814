"""What this machine can do at best, and what this process takes of it."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

#: Far beyond any cache.
_BUFFER_BYTES = 256 << 20


class MemoryReader:
    """Measures how fast threads read memory one after the other: the limit of decode.

    Holds 256 MiB while it lives.
    """

    def __init__(self) -> None:
        self._words = np.ones(_BUFFER_BYTES // 8, dtype=np.int64)

    def gigabytes_per_second(self, threads: int, passes: int = 3) -> float:
        """The best of some passes over the buffer by this many threads, in 1e9 bytes a second."""
        bounds = [len(self._words) * index // threads for index in range(threads + 1)]

        def read(begin: int, end: int) -> int:
            return int(self._words[begin:end].sum())  # NumPy lets go of the interpreter's lock

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(read, bounds[:-1], bounds[1:]))  # starts the threads
            best = 0.0
            for _ in range(passes):
                start = time.perf_counter()
                list(pool.map(read, bounds[:-1], bounds[1:]))
                best = max(best, self._words.nbytes / (time.perf_counter() - start) / 1e9)
        return best


def resident_bytes() -> int:
    """Memory of this process that is in RAM now, mapped files among it."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # no present value without /proc
    return peak if sys.platform == "darwin" else peak * 1024


def warm_page_cache(path: Path) -> None:
    """Read a file once, so that what follows does not measure the disk."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass
