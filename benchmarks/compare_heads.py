"""Time a GGUF file with bitexport's head kernels and with llama.cpp's own, alternating: benchmarks/head.md.

Usage: compare_heads.py MODEL.gguf [--threads 2] [--rounds 5] [--prompt-tokens 16] [--gen-tokens 32]

A process chooses its head once (BITEXPORT_HEAD), so two child processes have the model loaded and alternate;
the one that waits uses no CPU. Each round times ours, then llama.cpp's; the output is the median and range
of the rounds' ratios. pp: a prompt with the logits of every token. tg: one token after another.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from bitexport.runtime.session import Session


def serve(path: str, threads: int) -> None:
    """The child: for every line "pp N" or "tg N", run N tokens from an empty context; print tokens/s."""
    draw = random.Random(0)
    with Session(path, n_ctx=512, n_threads=threads, exact=False, memory_map=False) as session:
        for line in sys.stdin:
            what, count = line.split()
            ids = draw.choices(range(1000), k=int(count))
            session.clear()
            start = time.perf_counter()
            if what == "pp":
                session.logits(ids)
            else:
                for token in ids:
                    session.advance([token])
            print(int(count) / (time.perf_counter() - start), flush=True)


def measured(child: subprocess.Popen[str], what: str) -> float:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(what + "\n")
    child.stdin.flush()
    return float(child.stdout.readline())


def children(path: str, threads: int) -> Iterator[subprocess.Popen[str]]:
    for choice in ("", "stock"):
        yield subprocess.Popen(
            [sys.executable, __file__, path, "--serve", "--threads", str(threads)],
            env={**os.environ, "BITEXPORT_HEAD": choice},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--gen-tokens", type=int, default=32)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.model, options.threads)
        return
    both = list(children(options.model, options.threads))
    for what in (f"tg {options.gen_tokens}", f"pp {options.prompt_tokens}"):
        for child in both:
            measured(child, what)  # the first run touches every page
        rounds = [[measured(child, what) for child in both] for _ in range(options.rounds)]
        ratios = sorted(bitexport / stock for bitexport, stock in rounds)
        bitexport, stock = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(
            f"{what.replace(' ', '')}, {options.threads} threads: bitexport's head {bitexport:.2f} t/s, "
            f"llama.cpp's {stock:.2f} t/s, ratio {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} .. {ratios[-1]:.2f})"
        )
    for child in both:
        child.communicate()


if __name__ == "__main__":
    main()
