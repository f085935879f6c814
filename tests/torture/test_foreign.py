"""Damaged files of other projects and damaged parts of split models: an error of ours, or a conversion."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from bitexport.convert import convert
from bitexport.errors import BitexportError
from bitexport.gguf.reader import read_gguf
from tests.support.foreign_files import KINDS, foreign_file, split
from tests.support.tiny_models import Shape

SHAPE = Shape(hidden=256, ffn=256, layers=1, heads=2, kv_heads=1, vocab=400, context=64)
EXECUTIONS = 12


@pytest.fixture(scope="module")
def whole(gguf_of: Callable[..., Path]) -> Path:
    return gguf_of("packed-multiply", shape=SHAPE)


def damage(data: bytearray, start: int, end: int, chance: random.Random) -> None:
    """Change some bytes from ``start`` to ``end``, or cut the file off."""
    if chance.random() < 0.2:
        del data[chance.randrange(start, len(data)) :]
        return
    for _ in range(chance.randint(1, 4)):
        data[chance.randrange(start, end)] = chance.choice((0, 1, 2, 31, 36, 42, 127, 128, 142, 255))


def survives(path: Path, output: Path) -> str:
    try:
        convert(path, output, type="q2_0", dry_run=True)
    except BitexportError as error:
        return type(error).__name__
    return "converted"


@pytest.mark.parametrize("name", KINDS)
def test_damaged_foreign_files(whole: Path, tmp_path: Path, name: str) -> None:
    metadata = {"bitnet-b1.58.tensor_data_layout": "i2_s_row_scale_v1"} if name == "i2_s_row_scale" else {}
    foreign_file(whole, tmp_path / "good.gguf", name, metadata=metadata)
    good = (tmp_path / "good.gguf").read_bytes()
    tensors = read_gguf(tmp_path / "good.gguf").tensors
    data_start = tensors[0].offset
    entries = good.index(tensors[0].name.encode())
    outcomes = set()
    tracemalloc.start()
    for seed in range(EXECUTIONS):
        chance = random.Random(seed)
        data = bytearray(good)
        if seed % 2:
            damage(data, entries, data_start, chance)
        else:
            tensor = chance.choice([tensor for tensor in tensors if tensor.type.name == name])
            damage(data, tensor.offset, tensor.offset + tensor.nbytes, chance)
        (tmp_path / "bad.gguf").write_bytes(data)
        outcomes.add(survives(tmp_path / "bad.gguf", tmp_path / "x.gguf"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "GGUFError" in outcomes
    assert peak < 100 * len(good) < 1 << 27


def test_damaged_parts(whole: Path, tmp_path: Path) -> None:
    parts = split(whole, tmp_path / "model", 6)
    good = [part.read_bytes() for part in parts]
    outcomes = set()
    for seed in range(EXECUTIONS):
        chance = random.Random(seed)
        number = chance.randrange(len(parts))
        data = bytearray(good[number])
        header = read_gguf(parts[0]).tensors[0].offset if number == 0 else 600
        damage(data, 8, header, chance)
        parts[number].write_bytes(data)
        outcomes.add(survives(parts[0], tmp_path / "x.gguf"))
        parts[number].write_bytes(good[number])
    assert {"GGUFError", "converted"} <= outcomes
