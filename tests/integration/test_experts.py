"""Mixtures of experts on our kernels: products to the bit, and a model beside its float16 twin."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bitexport.convert import convert
from bitexport.convert.choices import TERNARY_TYPES
from bitexport.errors import GGUFError
from bitexport.gguf.checks.tensors import check_tensors
from bitexport.gguf.reader import read_gguf
from bitexport.gguf.types import I2_S
from bitexport.gguf.writer import TensorSpec, write_gguf
from bitexport.runtime.ggml import cpu_tier
from bitexport.runtime.observe import record_activations
from bitexport.runtime.session import Session
from tests.support.repository import REPOSITORY
from tests.support.tiny_experts import VOCAB, qwen3_moe

#: Not at most one per processor.
ALL_THREADS = {"BITEXPORT_THREADS": "stock"}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.support.programs.experts", *arguments],
        env={
            **os.environ,
            "OPENBLAS_NUM_THREADS": "1",
            "GGML_NO_BACKTRACE": "1",
            **ALL_THREADS,
            **environment,
        },
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def available_tiers() -> list[str]:
    """Those of this build that this CPU supports, from the error message for an unknown tier."""
    listed = re.search(r"expected one of: ([^;]+);", run("1", BITEXPORT_TIER="no-such-tier").stderr)
    assert listed is not None
    return listed[1].split(", ")


def test_every_tier_gives_the_numbers_of_the_definition() -> None:
    for tier in available_tiers():
        done = run("2", BITEXPORT_TIER=tier)
        assert done.returncode == 0, f"{tier}: {done.stderr}"
        assert done.stdout.split()[0] == tier


@pytest.mark.parametrize("layout", ["2bit", "1.6bit"])
def test_every_layout_and_number_of_threads(layout: str) -> None:
    done = run("1", "5", BITEXPORT_LAYOUT=layout)
    if done.returncode != 0 and layout != "2bit":
        assert f"not offered by kernel tier {cpu_tier()}" in done.stderr, done.stderr
    else:
        assert (done.returncode, done.stdout.split()) == (0, [cpu_tier(), layout]), done.stderr


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("too-large", "'ffn_moe_up-0' asks for expert 4 of 'blk.0.ffn_up_exps.weight', which has 4"),
        ("negative", "'ffn_moe_up-0' asks for expert -1 of 'blk.0.ffn_up_exps.weight', which has 4"),
        ("view", "MUL_MAT_ID of 'ffn_moe_up-0' cannot be computed from I2_S; only a matrix product with a"),
        ("mul-mat", "MUL_MAT of 'every-expert' cannot be computed from I2_S; only a matrix product with a"),
        ("grouped-view", "MUL_MAT_ID of 'ffn_moe_up-0' cannot be computed from 'blk.0.ffn_up_exps.weight"),
        ("grouped-mul-mat", "MUL_MAT of 'every-expert' cannot be computed from 'blk.0.ffn_up_exps.weight'"),
    ],
)
def test_what_cannot_be_computed_is_named(fault: str, message: str) -> None:
    done = run(fault)
    assert done.returncode < 0
    assert f"bitexport: {message}" in done.stderr
    assert "not refused" not in done.stdout


# -- a model -------------------------------------------------------------------------------------------------

IDS = [int(token) for token in np.random.default_rng(0).integers(3, VOCAB, 70)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experts")


@pytest.fixture(scope="module")
def twin(folder: Path) -> Path:
    """The float16 model."""
    return qwen3_moe(folder / "f16.gguf", experts=4, used=4)


def logits(file: Path, threads: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Of all tokens in one batch, and token by token."""
    with Session(file, n_ctx=128, n_threads=threads) as session:
        together = session.logits(IDS)
        session.clear()
        return together, np.stack([session.feed([token]) for token in IDS])


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sum(a * b, axis=-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.mark.parametrize("kind", [kind for kind in TERNARY_TYPES if kind != "f16"])
def test_a_model_beside_its_float_twin(kind: str, twin: Path, folder: Path) -> None:
    """They differ by the rounding of activations to 8 bits, where every expert is used."""
    target = folder / f"{kind}-{twin.name}"
    assert convert(twin, target, type=kind).warnings == []
    expected, _ = logits(twin)
    together, alone = logits(target)
    assert cosines(together, expected).min() > 0.998
    # not the same bits: ggml adds floats of the router, of attention and of the head in another order
    assert cosines(together, alone).min() > 0.9999


def test_two_of_eight_experts(folder: Path) -> None:
    """Rounding may exchange two experts that are equally good, in a few tokens; TQ2_0 rounds nearly alike."""
    source = qwen3_moe(folder / "eight-f16.gguf")
    for kind in ("i2_s", "tq2_0"):
        convert(source, folder / f"eight-{kind}.gguf", type=kind)
    expected, _ = logits(source)
    similar, _ = logits(folder / "eight-tq2_0.gguf")
    for found in logits(folder / "eight-i2_s.gguf"):
        assert np.quantile(cosines(found, expected), 0.2) > 0.99
        assert np.quantile(cosines(found, similar), 0.2) > 0.999


def test_every_number_of_threads_gives_the_same_bits(twin: Path, folder: Path) -> None:
    target = folder / f"threads-{twin.name}"
    convert(twin, target, type="i2_s")
    for one, other in zip(logits(target, 1), logits(target, 2), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_wrong_expert_would_be_seen(folder: Path) -> None:
    """Another model with the same router, so that the thresholds above are not too wide."""
    (first, _), (second, _) = (logits(qwen3_moe(folder / f"{seed}.gguf", seed=seed)) for seed in (1, 2))
    assert np.median(cosines(first, second)) < 0.5


def test_observed_activations_are_those_of_each_expert(folder: Path) -> None:
    convert(qwen3_moe(folder / "observed-f16.gguf"), folder / "observed.gguf", type="i2_s")
    with record_activations() as recorded, Session(folder / "observed.gguf", n_ctx=128) as session:
        session.logits(IDS)
    for part in ("gate", "up", "down"):
        rows = {
            name: len(found.q)
            for name, found in recorded.items()
            if name.startswith(f"blk.0.ffn_{part}_exps.weight#")
        }
        assert set(rows) <= {f"blk.0.ffn_{part}_exps.weight#{expert}" for expert in range(8)}
        assert sum(rows.values()) == 2 * len(IDS)
    np.testing.assert_array_equal(
        recorded["blk.0.ffn_gate_exps.weight#3"].q, recorded["blk.0.ffn_up_exps.weight#3"].q
    )


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("blk.0.attn_k_b.weight", (4, 32, 128), "expected two dimensions"),
        ("blk.0.ffn_up_exps.weight", (32, 128), "expected three dimensions, as for experts"),
        ("blk.0.ffn_up_exps.weight", (32, 30, 132), "and experts of a multiple of 128 weights.*--type f16"),
        ("token_embd.weight", (4, 32, 128), "an embedding is a lookup table"),
    ],
)
def test_other_tensors_of_three_dimensions_are_refused(
    tmp_path: Path, name: str, shape: tuple[int, ...], message: str
) -> None:
    spec = TensorSpec(name, shape, I2_S)
    data = np.zeros(I2_S.nbytes(shape), dtype=np.uint8)
    write_gguf(tmp_path / "x.gguf", "qwen3moe", {}, [spec], lambda _: [data])
    with pytest.raises(GGUFError, match=rf"'{name}' of type i2_s has shape .*{message}"):
        check_tensors(read_gguf(tmp_path / "x.gguf"))
