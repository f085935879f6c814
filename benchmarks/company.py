"""Decode and prefill beside busy processes, for one build or several, alternating.

Usage: company.py FILE.gguf [NAME=LIB_DIR[,VARIABLE=VALUE] ...] [--threads 2,4] [--loads 0,1,2]
                  [--rounds 5] [--tokens 16] [--prompt 128] [--settle 8] [--quota PERCENT]

Every build (BITEXPORT_LIB_DIR) is a process of its own that keeps its model; only one computes at a time.
After every change of company each decodes --settle tokens that are not counted.
Printed are tokens per second, medians with their range, their part of the first build's speed without
company at min(threads, cores) threads, and how much of a fair share that is: with T threads and L busy
processes on C cores, the threads can expect C T / (T + L) cores, and at most T.

With --quota, the models' processes share a cgroup with that much CPU time, in percent of one core (as
root).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from benchmarks.busy import busy
from bitexport.bench.measure import BenchTest
from bitexport.bench.worker import Worker

_CGROUP = Path("/sys/fs/cgroup/cpu/bitexport-company")  # cgroup v1
_PERIOD = 100_000


@contextlib.contextmanager
def quota(percent: int) -> Iterator[None]:
    """Give this process and those that it starts a CPU quota; nothing for 0."""
    if not percent:
        yield
        return
    _CGROUP.mkdir(exist_ok=True)
    (_CGROUP / "cpu.cfs_period_us").write_text(str(_PERIOD))
    (_CGROUP / "cpu.cfs_quota_us").write_text(str(_PERIOD * percent // 100))
    (_CGROUP / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        for process in (_CGROUP / "cgroup.procs").read_text().split():
            (_CGROUP.parent / "cgroup.procs").write_text(process)
        _CGROUP.rmdir()


def fair_cores(threads: int, load: int, cores: int) -> float:
    """The cores that so many threads can expect beside so many busy processes."""
    return min(threads, cores * threads / (threads + load))


def _build(text: str) -> tuple[str, dict[str, str]]:
    name, folder, *variables = text.replace(",", "=").split("=")
    return name, {"BITEXPORT_LIB_DIR": folder, **dict(zip(variables[::2], variables[1::2], strict=True))}


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("builds", nargs="*", metavar="NAME=LIB_DIR[,VARIABLE=VALUE]")
    parser.add_argument("--threads", type=_numbers, default=[2])
    parser.add_argument("--loads", type=_numbers, default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--settle", type=int, default=8)
    parser.add_argument("--quota", type=int, default=0)
    given = parser.parse_args()
    builds = dict(_build(text) for text in given.builds) or {"this": {}}
    tests = [BenchTest("tg", given.tokens), BenchTest("pp", given.prompt)]
    tests = [test for test in tests if test.tokens]
    cores = len(os.sched_getaffinity(0))
    speeds: dict[tuple[str, int, int, str], list[float]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        stack.enter_context(quota(given.quota))
        workers = {
            name: stack.enter_context(Worker(given.file, 2 * max(given.tokens, given.prompt), environment))
            for name, environment in builds.items()
        }
        for worker in workers.values():
            worker.seconds(tests[0], given.threads[0])
        for done in range(given.rounds):
            if done:
                _print(speeds, given.quota / 100 or cores, sys.stderr)
            for load in given.loads:
                with busy(load):
                    for threads in given.threads:
                        for worker in workers.values():
                            if given.settle:
                                worker.seconds(BenchTest("tg", given.settle), threads)
                        for test in tests:
                            for name, worker in workers.items():
                                speed = test.tokens / worker.seconds(test, threads)
                                speeds[name, threads, load, test.name].append(speed)
    _print(speeds, given.quota / 100 or cores)


def _print(
    speeds: dict[tuple[str, int, int, str], list[float]], cores: float, out: TextIO = sys.stdout
) -> None:
    first = next(iter(speeds))[0]
    print("| build | threads | busy | test | tokens/s | of alone | of the fair share |", file=out)
    print("| --- | --- | --- | --- | --- | --- | --- |", file=out)
    for (name, threads, load, test), values in speeds.items():
        middle = statistics.median(values)
        alone = [
            (t, v)
            for (n, t, busy_ones, k), v in speeds.items()
            if (n, busy_ones, k) == (first, 0, test) and t <= cores
        ]
        measured = f"{middle:.1f} ({min(values):.1f} to {max(values):.1f})"
        line = f"| {name} | {threads} | {load} | {test} | {measured} |"
        if alone:
            most, reference = max(alone)
            part = middle / statistics.median(reference)
            share = fair_cores(threads, load, int(cores)) / min(most, cores)
            line += f" {part:.2f} | {part / share:.2f} |"
        print(line, file=out)


if __name__ == "__main__":
    main()
