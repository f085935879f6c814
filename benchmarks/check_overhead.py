#!/usr/bin/env python3
"""Time what the checks before libllama cost, on a header as large as that of BitNet b1.58 2B4T.

    python benchmarks/make_2b4t_checkpoint.py ckpt && bitexport convert ckpt 2b.gguf
    python benchmarks/check_overhead.py 2b.gguf

The small tokenizer of that file is replaced, in a copy, by one of 128,256 tokens and
280,147 merges of random letters, whose lengths are like the published ones. Prints the shortest and the
median of ten runs, in milliseconds of CPU time: reading the header; all checks of it; whether it is proven.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bitexport.gguf.checks import check_file
from bitexport.gguf.reader import read_gguf
from bitexport.gguf.writer import RawValue, TensorSpec, write_gguf
from bitexport.runtime import proofs

TOKENS, MERGES = 128_256, 280_147
LETTERS = "abcdefghijklmnopqrstuvwxyzĠ"
RUNS = 10


def string_array(texts: Sequence[str]) -> RawValue:
    """An array of strings as GGUF stores it."""
    encoded = [text.encode() for text in texts]
    return RawValue(
        struct.pack("<IIQ", 9, 8, len(texts)) + b"".join(struct.pack("<Q", len(e)) + e for e in encoded)
    )


def with_large_vocabulary(source: Path, target: Path) -> None:
    """A copy with as many tokens and merges as the published model has."""
    file = read_gguf(source)
    chance = random.Random(0)
    tokens = dict.fromkeys(file.elements("tokenizer.ggml.tokens", 4096))
    while len(tokens) < TOKENS:
        tokens["".join(chance.choices(LETTERS, k=chance.randint(3, 11)))] = None
    texts = list(tokens)
    merges = [f"{chance.choice(texts)} {chance.choice(texts)}" for _ in range(MERGES)]
    keys = {key: RawValue(file.raw(key)) for key in file.metadata if key != "general.architecture"}
    keys["tokenizer.ggml.tokens"] = string_array(texts)
    keys["tokenizer.ggml.merges"] = string_array(merges)
    specs = [TensorSpec(tensor.name, tensor.shape, tensor.type) for tensor in file.tensors]
    data = {tensor.name: file.data(tensor) for tensor in file.tensors}
    write_gguf(target, file.metadata["general.architecture"], keys, specs, lambda spec: [data[spec.name]])


def timed(what: str, work: Callable[[], object]) -> None:
    seconds = []
    for _ in range(RUNS):
        start = time.process_time()
        work()
        seconds.append(1000 * (time.process_time() - start))
    print(f"{what}: {min(seconds):.1f} ms, median {statistics.median(seconds):.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("gguf", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        copy = Path(folder) / "copy.gguf"
        with_large_vocabulary(arguments.gguf, copy)
        header = read_gguf(copy)
        print(f"{copy.stat().st_size / 1e6:.0f} MB, {len(header.tensors)} tensors, {TOKENS:,} tokens")
        timed("reading the header", lambda: read_gguf(copy))
        timed("checks of a file that is new", lambda: check_file(header))
        timed("whether it is proven", lambda: proofs.is_proven(proofs.identity(header.parts)))


if __name__ == "__main__":
    main()
