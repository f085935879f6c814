"""The output head on our kernels: the same numbers as llama.cpp's own, and the same bits in every tier."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitexport.convert import convert
from bitexport.runtime.ggml import cpu_tier
from tests.support.repository import REPOSITORY

Checkpoints = Callable[..., Path]

#: Writes the logits to a file and llama.cpp's log to stderr.
LOGITS = """
import logging
import sys
import numpy as np
from bitexport.runtime.session import Session
logging.basicConfig(level=logging.DEBUG, format="%(message)s")
with Session(sys.argv[1], n_ctx=64, n_threads=2) as session:
    ids = list(range(3, 43))
    logits = session.logits(ids)
    session.clear()
    alone = np.stack([session.feed([token]) for token in ids])
    np.save(sys.argv[2], np.stack([logits, alone]))
"""


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, **environment},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def logits(gguf: Path, *, stock: bool = False, **environment: str) -> np.ndarray:
    """Float32 [2, 40, vocab]: 40 tokens at once, and one by one."""
    if stock:
        environment["BITEXPORT_HEAD"] = "stock"
    target = gguf.with_suffix(".npy")
    done = run("-c", LOGITS, gguf, target, **environment)
    assert done.returncode == 0, done.stderr
    # The bits alone do not show which kernels ran: with AMX, llama.cpp's q6_k gives exactly ours.
    assert ("CPU_HEAD model buffer" in done.stderr) is not stock
    return np.load(target)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["q6_k", "q5_k", "q4_k"])
def test_the_numbers_equal_those_of_llama_cpp(
    kind: str, tied: bool, tmp_path: Path, checkpoint_of: Checkpoints
) -> None:
    gguf = tmp_path / "x.gguf"
    convert(checkpoint_of("packed-multiply", tied=tied), gguf, embed_type=kind)
    ours, stock = logits(gguf), logits(gguf, stock=True)
    assert np.abs(ours - stock).max() < 1e-5 * np.abs(stock).max()


@pytest.mark.parametrize("kind", ["q5_k", "q4_k"])  # q6_k: see test_tiers_and_threads
def test_every_tier_computes_the_same_bits(kind: str, tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    gguf = tmp_path / "x.gguf"
    convert(checkpoint_of("packed-multiply"), gguf, embed_type=kind)
    best, scalar = (
        run("-m", "tests.support.programs.digest", gguf, "2", BITEXPORT_TIER=tier)
        for tier in (cpu_tier(), "scalar")
    )
    assert best.returncode == 0, best.stderr
    assert {**json.loads(best.stdout), "tier": "scalar"} == json.loads(scalar.stdout)


def test_an_unknown_choice_is_an_error() -> None:
    done = run("-c", "from bitexport.runtime.ggml import cpu_tier; cpu_tier()", BITEXPORT_HEAD="fast")
    assert "NativeLibraryError: BITEXPORT_HEAD is 'fast'; expected 'stock'" in done.stderr
