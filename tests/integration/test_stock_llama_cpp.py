"""Files for other runtimes run in stock llama.cpp: the pinned source, built without our patches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitexport.convert import convert
from bitexport.gguf.reader import read_gguf
from bitexport.sharing.runtimes import lacking_upstream
from bitexport.system.native_files import find_library_dir
from tests.support import family_cases, upstream_models
from tests.support.repository import PROGRAMS, REPOSITORY
from tests.support.tiny_models import tiny_checkpoint

STOCK = REPOSITORY / "build" / "stock" / "lib"
PROMPT = [5, 17, 101, 42, 7, 230]


def greedy(library_dir: Path, gguf: Path, tokens: int = 64) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            str(PROGRAMS / "greedy.py"),
            str(gguf),
            str(tokens),
            *map(str, PROMPT),
        ],
        env={**os.environ, "LLAMA_CPP_LIB_PATH": str(library_dir)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def stock() -> Path:
    assert (STOCK / "libllama.so").exists(), "the unpatched llama.cpp is not built; run: make stock"
    return STOCK


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(
        tmp_path_factory.mktemp("llama"), "packed-multiply", architecture="llama", tied=False
    )


@pytest.mark.parametrize("kind", ["tq2_0", "tq1_0", "q2_0", "f16"])
def test_same_greedy_text_in_stock_llama_cpp(
    kind: str, stock: Path, checkpoint: Path, tmp_path: Path
) -> None:
    gguf = tmp_path / f"{kind}.gguf"
    convert(checkpoint, gguf, type=kind, embed_type="f16")
    ours, upstream = greedy(find_library_dir(), gguf), greedy(stock, gguf)
    assert upstream.returncode == 0, upstream.stderr
    assert ours.returncode == 0, ours.stderr
    assert len(json.loads(upstream.stdout)) == 64
    assert len(set(json.loads(upstream.stdout))) > 8, "comparing a repetitive text would show nothing"
    assert json.loads(ours.stdout) == json.loads(upstream.stdout)


@pytest.mark.parametrize(
    "case",
    [
        "2B4T",
        "BitNet without SubLN",
        "1bitLLM",
        "Llama",
        "Llama with use_rms_norm",
        "Llama student",
        "Qwen2.5 student",
        "Qwen3 student",
        "Gemma 3 with use_rms_norm",
        "Gemma 3 student",
        "HunYuan student",
    ],
)
def test_stock_llama_cpp_runs_what_the_card_says(case: str, stock: Path, tmp_path: Path) -> None:
    """Our graphs are unknown there, whatever the type; upstream's own give the same text."""
    checkpoint = family_cases.made(family_cases.CASES[case], tmp_path)
    gguf = tmp_path / "q2_0.gguf"
    convert(checkpoint, gguf, type="q2_0", embed_type="f16")
    ours, upstream = greedy(find_library_dir(), gguf, 16), greedy(stock, gguf, 16)
    assert ours.returncode == 0, ours.stderr
    assert (upstream.returncode == 0) == (lacking_upstream(read_gguf(gguf)) == [])
    if upstream.returncode == 0:
        assert json.loads(ours.stdout) == json.loads(upstream.stdout)


def test_stock_llama_cpp_runs_what_its_own_converter_knows(stock: Path, tmp_path: Path) -> None:
    checkpoint, _, _ = upstream_models.made("OLMo-2", tmp_path)
    gguf = tmp_path / "q2_0.gguf"
    convert(checkpoint, gguf, type="q2_0", embed_type="f16")
    assert lacking_upstream(read_gguf(gguf)) == []
    ours, upstream = greedy(find_library_dir(), gguf, 16), greedy(stock, gguf, 16)
    assert upstream.returncode == 0, upstream.stderr
    assert json.loads(ours.stdout) == json.loads(upstream.stdout)


def test_stock_llama_cpp_rejects_i2_s(stock: Path, checkpoint: Path, tmp_path: Path) -> None:
    """The stock build really is unpatched."""
    gguf = tmp_path / "i2_s.gguf"
    convert(checkpoint, gguf, type="i2_s", embed_type="f16")
    assert lacking_upstream(read_gguf(gguf)) == ["the tensor type I2_S"]
    assert greedy(stock, gguf).returncode != 0
    assert greedy(find_library_dir(), gguf).returncode == 0
