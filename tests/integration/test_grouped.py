"""Q2_0, TQ1_0 and TQ2_0 on our kernels: the numbers of llama.cpp's own, and the same bits in every tier."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.scripts.gguf_new_metadata import copy_with_new_metadata

from bitexport.bench.weights import token_cost
from bitexport.convert import convert
from bitexport.gguf.reader import read_gguf
from bitexport.gguf.types import TYPES
from bitexport.runtime.ggml import cpu_tier
from bitexport.runtime.observe import Activations, record_activations
from bitexport.runtime.session import Session
from tests.integration.test_head import LOGITS, run
from tests.support.gguf_files import changed, rewritten
from tests.support.tiny_models import tiny_checkpoint

KINDS = ("q2_0", "tq1_0", "tq2_0")
DIGEST = "tests.support.programs.digest"


def logits(file: Path, **environment: str) -> tuple[np.ndarray, str]:
    """Float32 [2, 40, vocab], 40 tokens at once and one by one; and llama.cpp's log."""
    target = file.with_suffix(".npy")
    done = run("-c", LOGITS, file, target, **environment)
    assert done.returncode == 0, done.stderr
    return np.load(target), done.stderr


def check_close(ours: np.ndarray, stock: np.ndarray) -> None:
    """Float error, and what becomes of it where it moves an activation over a rounding edge."""
    error = np.abs(ours - stock).max(axis=2) / np.abs(stock).max()
    assert error.min() < 1e-6
    cosine = (ours * stock).sum(axis=2) / np.linalg.norm(ours, axis=2) / np.linalg.norm(stock, axis=2)
    assert cosine.min() > 0.9999


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied model of architecture llama in float16."""
    folder = tmp_path_factory.mktemp("grouped")
    checkpoint = tiny_checkpoint(folder / "llama", "packed-multiply", architecture="llama", tied=False)
    convert(checkpoint, folder / "f16.gguf", type="f16", embed_type="f16")
    return folder / "f16.gguf"


def random_blocks(kind: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A tensor whose groups have scales of their own, with every code of the type (3 in q2_0 and tq2_0)."""
    block, size = TYPES[kind].block, TYPES[kind].block_bytes
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (np.prod(shape) // block, size), dtype=np.uint8)
    scales = random.choice([-1, 1], (len(blocks), 1)) * random.uniform(0.01, 0.05, (len(blocks), 1))
    at = 0 if kind == "q2_0" else size - 2
    blocks[:, at : at + 2] = scales.astype(np.float16).view(np.uint8)
    return blocks.reshape(-1)


@pytest.fixture(scope="module")
def file_of(floats: Path) -> Callable[[str], Path]:
    """``file_of(kind)``: the model with random matrices of that type, its output head included."""

    def make(kind: str) -> Path:
        target = floats.with_name(f"{kind}.gguf")
        matrices = (t for t in read_gguf(floats).tensors if len(t.shape) == 2 and "token_embd" not in t.name)
        seeds = {tensor.name: seed for seed, tensor in enumerate(matrices)}
        if not target.exists():
            rewritten(
                floats,
                target,
                change=lambda tensor, type_, data: (
                    (TYPES[kind], random_blocks(kind, tensor.shape, seeds[tensor.name]))
                    if tensor.name in seeds
                    else (type_, data)
                ),
            )
        return target

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_equal_those_of_llama_cpp(kind: str, file_of: Callable[[str], Path]) -> None:
    ours, log = logits(file_of(kind))
    stock, stock_log = logits(file_of(kind), BITEXPORT_GROUPED="stock")
    assert "CPU_GROUPED model buffer" in log
    assert "CPU_GROUPED" not in stock_log
    check_close(ours, stock)
    assert len(set(ours[0].argmax(axis=1))) > 8, "comparing repetitive logits would show nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_every_tier_and_number_of_threads_computes_the_same_bits(
    kind: str, file_of: Callable[[str], Path]
) -> None:
    best, scalar = (
        run("-m", DIGEST, file_of(kind), threads, BITEXPORT_TIER=tier)
        for tier, threads in ((cpu_tier(), "2"), ("scalar", "1"))
    )
    assert best.returncode == 0, best.stderr
    assert {**json.loads(best.stdout), "tier": "scalar"} == json.loads(scalar.stdout)


@pytest.mark.parametrize("kind", ["tq1_0", "tq2_0"])
def test_a_file_that_the_gguf_package_writes(kind: str, floats: Path, tmp_path: Path) -> None:
    """Quantized and written by gguf-py alone, from weights that are not ternary."""
    number = gguf.GGMLQuantizationType[kind.upper()]
    reader = gguf.GGUFReader(floats)
    random = np.random.default_rng(0)
    for index, tensor in enumerate(reader.tensors):
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2:
            weights = random.normal(0, 0.05, tensor.data.shape).astype(np.float32)
            data = gguf.quants.quantize(weights, number)
            reader.tensors[index] = tensor._replace(data=data, tensor_type=number, n_bytes=data.nbytes)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    copy_with_new_metadata(reader, writer, {}, [])
    ours, log = logits(tmp_path / "x.gguf")
    assert "CPU_GROUPED model buffer" in log
    stock, _ = logits(tmp_path / "x.gguf", BITEXPORT_GROUPED="stock")
    check_close(ours, stock)


@pytest.mark.parametrize(("kind", "group"), [("q2_0", 32), ("tq1_0", 256), ("tq2_0", 256)])
def test_activations_are_observed_in_groups(kind: str, group: int, file_of: Callable[[str], Path]) -> None:
    with Session(file_of(kind), n_ctx=64) as session, record_activations() as recorded:
        session.logits([3, 4, 5])
        session.feed([6])
    inputs = recorded["blk.0.ffn_down.weight"]
    assert isinstance(inputs, Activations)
    assert inputs.q.shape[0] == 4
    assert inputs.group == group
    assert (np.abs(inputs.q.reshape(4, -1, group)).max(axis=2) == 127).all()
    assert np.isfinite(inputs.scales).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_read_are_known(kind: str, file_of: Callable[[str], Path]) -> None:
    """2 bits per weight and the scales, where panels are complete; tq1_0 has fewer in the file."""
    file = file_of(kind)
    matrices = [t for t in read_gguf(file).tensors if t.type.name == kind]
    weights = sum(int(np.prod(t.shape)) for t in matrices)
    cost = token_cost(file)
    per_weight = (cost.memory_bytes - cost.file_bytes + sum(t.nbytes for t in matrices)) * 8 / weights
    assert per_weight == pytest.approx(2.25 if kind == "q2_0" else 2.0625)


def test_a_damaged_scale_is_named(file_of: Callable[[str], Path], tmp_path: Path) -> None:
    def infinite(data: bytearray, offset: int, _length: int) -> None:
        data[offset + 18 : offset + 20] = b"\x00\x7c"

    bad = changed(file_of("q2_0"), tmp_path / "bad.gguf", "blk.0.ffn_up.weight", infinite)
    done = run("-c", LOGITS, bad, tmp_path / "x.npy")
    assert done.returncode != 0
    assert "'blk.0.ffn_up.weight' has a scale that is infinite or not a number" in done.stderr
    assert "row 0 from column 64" in done.stderr


def test_an_unknown_choice_is_an_error() -> None:
    done = run("-c", "from bitexport.runtime.ggml import cpu_tier; cpu_tier()", BITEXPORT_GROUPED="fast")
    assert "NativeLibraryError: BITEXPORT_GROUPED is 'fast'; expected 'stock'" in done.stderr
