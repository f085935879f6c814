"""The mutator of GGUF files."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from bitexport.errors import BitexportError
from bitexport.gguf.reader import read_gguf
from tests.torture.gguf_mutator import build, mutant, parse

Maker = Callable[..., Path]


def test_it_is_reproducible_and_keeps_the_structure(gguf_of: Maker, tmp_path: Path) -> None:
    path = gguf_of("packed-multiply")
    seed = parse(path)
    (tmp_path / "same.gguf").write_bytes(build(seed))
    assert len(read_gguf(tmp_path / "same.gguf").tensors) == len(read_gguf(path).tensors)
    first = [mutant(seed, ("llama", "mamba"), random.Random(number)) for number in range(40)]
    again = [mutant(seed, ("llama", "mamba"), random.Random(number)) for number in range(40)]
    assert first == again
    assert build(seed) == build(parse(path))  # the seed stays as it is
    readable = 0
    for data in first:
        (tmp_path / "x.gguf").write_bytes(data)
        try:
            read_gguf(tmp_path / "x.gguf")
            readable += 1
        except BitexportError:
            pass
    assert len(set(first)) > 30
    assert readable > 15  # most get past the reader of headers
