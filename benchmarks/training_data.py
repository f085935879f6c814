"""Speed and memory of the cache of tokens, on synthetic pairs as long as sentences.

Usage: python -m benchmarks.training_data [--pairs 1000000] [--workers 0] [--template tags]

Writes two text files of random words (8 to 32 per sentence, with lengths as of English words), tokenizes them
with the tokenizer of examples/en-fr in a process of its own, and again, when the cache is complete. Memory is
the largest resident set of that process, and of the largest of those that it starts.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def write_pairs(folder: Path, pairs: int) -> str:
    """Two files of ``pairs`` lines; the source that names them."""
    random = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = ["".join(random.choice(letters, length)) for length in random.integers(1, 10, 20_000)]
    for name in ("a.en", "a.fr"):
        with (folder / name).open("w") as file:
            for length in random.integers(8, 33, pairs):
                file.write(" ".join(words[i] for i in random.integers(0, len(words), length)) + ".\n")
    return f"parallel:{folder / 'a.en'},{folder / 'a.fr'}"


def build(source: str, folder: Path, template: str, workers: int) -> None:
    """Fill or open the cache, and print the figures as JSON."""
    from bitexport.reference.model import load_tokenizer
    from bitexport.text import Template
    from bitexport.train.data.cache import open_cache
    from bitexport.train.data.mixture import parse_mixture

    tokenizer = load_tokenizer(ROOT / "examples" / "en-fr")
    start = time.perf_counter()
    cache = open_cache(
        parse_mixture([source]), Template(template, "en", "fr"), 1, tokenizer, folder, workers=workers
    )
    seconds = time.perf_counter() - start
    own, others = (
        resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    found = {
        "records": len(cache.offsets) - 1,
        "tokens": len(cache.tokens),
        "seconds": seconds,
        "peak_gib": own,
        "peak_gib_of_a_worker": others,
    }
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--template", default="tags")
    parser.add_argument("--build", nargs=2, metavar=("SOURCE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build:
        build(options.build[0], Path(options.build[1]), options.template, options.workers)
        return
    with TemporaryDirectory() as name:
        source = write_pairs(Path(name), options.pairs)
        command = [sys.executable, "-m", "benchmarks.training_data", "--template", options.template]
        command += ["--workers", str(options.workers), "--build", source, str(Path(name) / "cache")]
        for start in ("first", "second"):
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ)
            figures = json.loads(done.stdout)
            rate = figures["records"] / figures["seconds"]
            print(f"{start} start: {figures}, {rate:,.0f} pairs/s")


if __name__ == "__main__":
    main()
