"""What an evaluation of a block costs beside that of a single token, on any GGUF file.

Usage: block_passes.py FILE.gguf [--sizes 8,16,32] [--threads 1,2] [--planted 2.5] [--rounds 5]

The file need not be a model of block diffusion: the block size is planted, and so is the number of tokens
that a pass settles. Every round times single tokens and a pass of each size, behind 64 tokens of context.
In a pass half of the positions have their logits computed, as halfway through a block.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from bitexport.checkpoint.block_diffusion import BlockDiffusion
from bitexport.runtime import block_checks
from bitexport.runtime.block_session import BlockSession

CONTEXT = 64
SINGLE = 4  # tokens that are timed one by one


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--sizes", default="8,16,32")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--planted", type=float, default=2.5, help="tokens that a pass settles")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    planted = BlockDiffusion(max(sizes), 0)
    with mock.patch.object(block_checks, "diffusion_of", return_value=planted):
        session = BlockSession(options.gguf, n_ctx=256, exact=False)
    print("| threads | tokens of a pass | ms per pass | ms per single token | ratio | speed-up | range |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with session:
        for threads in map(int, options.threads.split(",")):
            session.set_threads(threads)
            for row in _measure(session, sizes, options.rounds, options.planted):
                print(f"| {threads} | {' | '.join(row)} |", flush=True)


def _measure(session: BlockSession, sizes: list[int], rounds: int, planted: float) -> list[list[str]]:
    session.clear()
    session.evaluate(range(CONTEXT), [CONTEXT - 1], keep=True)
    singles: list[float] = []
    passes: dict[int, list[float]] = {size: [] for size in sizes}
    for number in range(rounds + 1):
        single = _seconds(lambda: [session.evaluate([t], [0], keep=False) for t in range(SINGLE)]) / SINGLE
        for size in sizes:
            rows = range(size // 2, size)
            seconds = _seconds(lambda size=size, rows=rows: session.evaluate(range(size), rows, keep=False))  # type: ignore[misc]
            if number:
                passes[size].append(seconds)
        if number:  # the first warms up
            singles.append(single)
    found = []
    for size, seconds in passes.items():
        ratios = [each / single for each, single in zip(seconds, singles, strict=True)]
        ratio = statistics.median(ratios)
        found.append(
            [
                str(size),
                f"{1000 * statistics.median(seconds):.1f}",
                f"{1000 * statistics.median(singles):.1f}",
                f"{ratio:.2f}",
                f"{planted / ratio:.2f}x",
                f"{planted / max(ratios):.2f} to {planted / min(ratios):.2f}",
            ]
        )
    return found


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
