"""What drafts can save on a model whose text means nothing: planted ones, right at a given rate.

A planted source knows the text that is decoded (random tokens), drafts it and is wrong on purpose, each
token with the same probability. So this measures what passes cost on a machine, and never how well
anything foresees a text. First, the cost of passes of 1 to 32 tokens by themselves.

    python benchmarks/drafts.py FILE.gguf --threads 2 --tokens 64 --rounds 2
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

from bitexport.bench.drafts import compare_decoding
from bitexport.runtime.drafts.pace import Pace
from bitexport.runtime.loading import load
from bitexport.runtime.sampling import Sampler

SIZES = (1, 2, 4, 8, 16, 32)


class Planted:
    """Drafts the known text; each token is right with the given probability, or no more after a wrong one."""

    name = "planted"

    def __init__(self, text: Sequence[int], rate: float) -> None:
        self.pace = Pace([rate])
        self._text = list(text)
        self._rate = rate
        self._at = 0
        self._draw = random.Random(0)

    def begin(self, ids: Sequence[int]) -> None:
        self._at = len(ids)

    def follow(self, token: int) -> None:  # noqa: ARG002
        self._at += 1

    def propose(self, most: int, sampler: Sampler) -> tuple[list[int], list[int]]:  # noqa: ARG002
        worth = self.pace.worth([0] * most)
        known = self._text[self._at : self._at + worth]
        drafted = [token if self._draw.random() < self._rate else token ^ 1 for token in known]
        return drafted, [0] * len(drafted)

    def close(self) -> None:
        pass


def pass_costs(model: Any, context: int, rounds: int) -> None:
    """Print the time of passes by their number of tokens, each with logits at every position."""
    draw = random.Random(0)
    ids = [draw.randrange(model.n_vocab()) for _ in range(context + max(SIZES))]
    model.reset()
    model.eval(ids[:context])
    seconds: dict[int, list[float]] = {size: [] for size in SIZES}
    for number in range(rounds + 1):
        for size in SIZES:
            model.n_tokens = context
            start = time.perf_counter()
            model.eval_every_position(ids[context : context + size])
            if number:
                seconds[size].append(time.perf_counter() - start)
    one = statistics.median(seconds[1])
    print(f"| tokens in a pass, after {context} | ms | tokens/s | passes of one token |\n|---|---|---|---|")
    for size, found in seconds.items():
        median = statistics.median(found)
        print(f"| {size} | {1e3 * median:.1f} | {size / median:.1f} | {median / one:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rates", type=float, nargs="*", default=[0.0, 0.5, 0.7, 0.9])
    given = parser.parse_args()
    model: Any = load(given.gguf, n_ctx=512, n_threads=given.threads, n_threads_batch=given.threads)
    pass_costs(model, 200, given.rounds)
    draw = random.Random(1)
    ids = [draw.randrange(model.n_vocab()) for _ in range(64 + given.tokens)]
    print("\n| drafts right | tokens per pass | plain t/s | with drafts | ratio | range |")
    print("|---|---|---|---|---|---|")
    for rate in given.rates:
        source = Planted(ids, rate)
        row = compare_decoding(model, source, ids, "planted", given.threads, given.tokens, given.rounds)
        print(
            f"| {rate:.0%} | {row.tokens_per_pass:.2f} | {row.plain:.1f} | {row.drafted:.1f} "
            f"| {row.ratio:.2f} | {row.ratio_min:.2f} .. {row.ratio_max:.2f} |",
            flush=True,
        )
    model.close()


if __name__ == "__main__":
    main()
