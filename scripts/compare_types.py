"""Time two GGUF files of the same model against each other, in turns: a paired comparison for benchmarks/.

Usage: compare_types.py A.gguf B.gguf [--threads 2] [--rounds 5] [--prompt-tokens 128] [--gen-tokens 32]

Both are loaded at once and read into memory (not mapped), so that neither's pages can be taken away while
the other runs. Each round times A, then B; what is printed is the rounds' ratio A / B, its median and range.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

from bitexport.bench.limits import LimitMeter
from bitexport.runtime.model import Session


def speed(session: Session, ids: list[int], one_by_one: bool) -> float:
    """Tokens a second from an empty context."""
    session.clear()
    start = time.perf_counter()
    if one_by_one:
        for token in ids:
            session.advance([token])
    else:
        session.advance(ids)
    return len(ids) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("a")
    parser.add_argument("b")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--gen-tokens", type=int, default=32)
    options = parser.parse_args()

    size = max(options.prompt_tokens, options.gen_tokens)
    sessions = [
        Session(path, n_ctx=size, n_threads=options.threads, exact=False, memory_map=False)
        for path in (options.a, options.b)
    ]
    memory = LimitMeter()
    draw = random.Random(0)
    for name, count, one_by_one in (
        (f"pp{options.prompt_tokens}", options.prompt_tokens, False),
        (f"tg{options.gen_tokens}", options.gen_tokens, True),
    ):
        ids = draw.choices(range(1000), k=count)
        for session in sessions:
            speed(session, ids, one_by_one)
        rounds = [[speed(session, ids, one_by_one) for session in sessions] for _ in range(options.rounds)]
        ratios = sorted(a / b for a, b in rounds)
        a, b = (statistics.median(column) for column in zip(*rounds, strict=True))
        read = memory.measure(options.threads).memory_gbps
        print(
            f"{name}, {options.threads} threads: A {a:.2f} t/s, B {b:.2f} t/s, "
            f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} .. {ratios[-1]:.2f}); "
            f"memory read {read:.1f} GB/s"
        )


if __name__ == "__main__":
    main()
