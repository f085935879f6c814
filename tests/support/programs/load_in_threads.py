"""Loads a model many times in many threads at once: prints one JSON document.

python -m tests.support.programs.load_in_threads MODEL.gguf --loads 10000 --threads 8

The first loads also import everything. Each model must compute the same logits, and the files behind file
descriptors 1 and 2 must stay what they are at every moment.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import bitexport


class Loads:
    """Threads that share a number of loads.

    Attributes:
        done: the loads so far.
        problems: what went wrong, without repetitions.
    """

    def __init__(self, model: Path, loads: int) -> None:
        self._model = model
        self._tickets = iter(range(loads))
        self._expected: Any = None
        self._lock = threading.Lock()
        self.done = 0
        self.problems: set[str] = set()

    def work(self) -> None:
        while self._ticket() is not None:
            try:
                self._load()
            except BaseException as error:
                with self._lock:
                    self.problems.add(repr(error))

    def _ticket(self) -> int | None:
        with self._lock:
            return next(self._tickets, None)

    def _load(self) -> None:
        model = bitexport.load(self._model, n_ctx=64, n_threads=1, logits_all=True)
        try:
            model.eval([5, 6, 7])
            logits = model.scores[:3].tobytes()
        finally:
            model.close()
        with self._lock:
            self._expected = self._expected or logits
            self.done += 1
            if logits != self._expected:
                self.problems.add("the logits differ from those of the first load")


def outputs() -> list[tuple[int, int, int]]:
    return [(found.st_dev, found.st_ino, found.st_mode) for found in map(os.fstat, (1, 2))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--loads", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=8)
    arguments = parser.parse_args()
    before = outputs()
    loads = Loads(arguments.model, arguments.loads)
    threads = [threading.Thread(target=loads.work) for _ in range(arguments.threads)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    checks = 0
    while any(thread.is_alive() for thread in threads):
        checks += 1
        if outputs() != before:
            loads.problems.add("file descriptor 1 or 2 was something else for a moment")
        time.sleep(0.0002)
    for thread in threads:
        thread.join()
    if outputs() != before:
        loads.problems.add("file descriptor 1 or 2 is something else at the end")
    report = {
        "loads": loads.done,
        "threads": arguments.threads,
        "checks": checks,
        "seconds": round(time.perf_counter() - start, 1),
        "problems": sorted(loads.problems),
    }
    print(json.dumps(report))
    print("stderr is open", file=sys.stderr)


if __name__ == "__main__":
    main()
