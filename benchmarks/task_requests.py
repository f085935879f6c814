"""Requests per second of ``bitexport eval --tasks``: alone, many at once, and with common beginnings shared.

    python benchmarks/task_requests.py FILE.gguf [--questions 40] [--shots 300] [--threads 2]

The requests are those of a multiple-choice task: examples before all questions, a question of 40 tokens, and
four choices of 6 tokens. Their tokens are random, which does not change the time.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from bitexport.runtime.prefix_tree import Query
from bitexport.runtime.shared_prefix import SLOTS, SharedPrefixSession

QUESTION, CHOICE, CHOICES = 40, 6, 4

WAYS = {
    "one at a time": {"share": False, "slots": 1},
    "many at once": {"share": False, "slots": SLOTS},
    "beginnings shared": {"share": True, "slots": SLOTS},
}


def make_queries(questions: int, shots: int, n_vocab: int) -> list[Query]:
    """Queries that begin with the same ``shots`` tokens."""
    rng = np.random.default_rng(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(map(int, rng.integers(0, n_vocab, count)))

    examples = tokens(shots)
    asked = [examples + tokens(QUESTION) for _ in range(questions)]
    return [Query(text + tokens(CHOICE), len(text)) for text in asked for _ in range(CHOICES)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--shots", type=int, default=300, help="tokens of the examples")
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    rates: dict[str, float] = {}
    for name, options in WAYS.items():
        with SharedPrefixSession(arguments.file, n_threads=arguments.threads, **options) as session:
            queries = make_queries(arguments.questions, arguments.shots, session.n_vocab)
            session.answer(queries[:CHOICES])
            begin = time.perf_counter()
            session.answer(queries)
            rates[name] = len(queries) / (time.perf_counter() - begin)
        print(f"{name:<20} {rates[name]:8.2f} requests/s  {rates[name] / rates['one at a time']:6.2f}x")


if __name__ == "__main__":
    main()
