"""What libllama itself refuses, for C++ tools that have no Python in front: an error instead of an abort."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

from bitexport.gguf.reader import GGUFTensor
from bitexport.gguf.types import F16, TYPES, TensorType
from bitexport.runtime.trial import run_trial
from tests.support.gguf_files import rewritten
from tests.support.tiny_models import Shape

Maker = Callable[..., Path]

SHAPE = Shape(hidden=256, ffn=256, layers=1, heads=4, kv_heads=2, vocab=400, context=64)


@pytest.fixture(scope="module")
def model(gguf_of: Maker) -> Path:
    return gguf_of("packed-multiply", shape=SHAPE)


def tried(path: Path) -> CompletedProcess[bytes]:
    return run_trial(path, 4 << 30, 60, vocab_only=False)


def reason(path: Path) -> str:
    """libllama's error for a file that our Python did not look at."""
    done = tried(path)
    text = done.stderr.decode()
    assert done.returncode == 1, text
    return text


def test_a_good_file(model: Path) -> None:
    done = tried(model)
    assert (done.returncode, done.stdout, done.stderr) == (0, None, b"")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "rope.dimension_count",
            128,
            "bitnet-b1.58.rope.dimension_count is 128; expected an even number up to",
        ),
        (
            "rope.dimension_count",
            31,
            "bitnet-b1.58.rope.dimension_count is 31; expected an even number up to the",
        ),
        (
            "rope.dimension_count",
            2**32 - 2,
            "dimension_count is 4294967294; expected an even number up to the head",
        ),
        ("attention.layer_norm_rms_epsilon", float("nan"), "layer_norm_rms_epsilon is nan; expected a small"),
        ("attention.layer_norm_rms_epsilon", -1.0, "layer_norm_rms_epsilon is -1; expected a small positive"),
        ("block_count", 0, "GGML_ASSERT(hparams.n_layer_all > 0"),
        ("nextn_predict_layers", 2, "GGML_ASSERT(hparams.n_layer_nextn <= hparams.n_layer_all) failed"),
        ("expert_count", 4, "GGML_ASSERT(n_expert_used_max > 0) failed"),
    ],
)
def test_numbers(model: Path, tmp_path: Path, key: str, value: Any, message: str) -> None:
    path = rewritten(model, tmp_path / "out.gguf", metadata={f"bitnet-b1.58.{key}": value})
    assert message in reason(path)


@pytest.mark.parametrize(
    ("tensor", "kind", "message"),
    [
        ("output_norm.weight", F16, "has type f16; expected f32, the type of gains and biases"),
        ("blk.0.attn_norm.weight", F16, "has type f16; expected f32, the type of gains and biases"),
        ("blk.0.ffn_norm.weight", TYPES["i32"], "has type i32; expected f32, the type of gains and biases"),
        ("blk.0.attn_q.weight", TYPES["i8"], "has type i8; expected a weight type, such as f16 or q6_k"),
        ("blk.0.attn_q.weight", TYPES["q8_k"], "has type q8_K; expected a weight type, such as f16 or q6_k"),
        ("token_embd.weight", TYPES["i32"], "has type i32; expected a type for lookups, such as f16 or q6_k"),
        (
            "token_embd.weight",
            TYPES["q8_k"],
            "has type q8_K; expected a type for lookups, such as f16 or q6_k",
        ),
        (
            "token_embd.weight",
            TYPES["i2_s"],
            "has type i2_s; expected a type for lookups, such as f16 or q6_k",
        ),
    ],
)
def test_types(model: Path, tmp_path: Path, tensor: str, kind: TensorType, message: str) -> None:
    def change(given: GGUFTensor, old: TensorType, data: np.ndarray) -> tuple[TensorType, np.ndarray]:
        if given.name != tensor:
            return old, data
        return kind, np.zeros(kind.nbytes(given.shape), dtype=np.uint8)

    path = rewritten(model, tmp_path / "out.gguf", change=change)
    assert f"tensor '{tensor}' {message}" in reason(path)


def test_sections_of_rope_that_are_all_empty(gguf_of: Maker, tmp_path: Path) -> None:
    """ggml asserts this in its worker threads."""
    llama = gguf_of("packed-multiply", shape=SHAPE, architecture="llama")
    path = rewritten(llama, tmp_path / "out.gguf", architecture="paddleocr")
    assert "paddleocr.rope.dimension_sections is 0; expected a section of more than 0" in reason(path)


def test_assertions_of_a_graph(gguf_of: Maker, tmp_path: Path) -> None:
    llama = gguf_of("packed-multiply", shape=SHAPE, architecture="llama")
    path = rewritten(llama, tmp_path / "out.gguf", architecture="smallthinker")
    assert "GGML_ASSERT(n_expert > 0 && " in reason(path)


def test_what_still_ends_the_process(gguf_of: Maker, tmp_path: Path) -> None:
    """phimoe divides by the number of heads: the reason for trying files in a process of their own."""
    llama = gguf_of("packed-multiply", shape=SHAPE, architecture="llama")
    keys = {"phimoe.attention.head_count": 0}
    path = rewritten(llama, tmp_path / "out.gguf", architecture="phimoe", metadata=keys)
    done = tried(path)
    assert done.returncode < 0


def test_the_last_words_before_an_abort_reach_stderr(gguf_of: Maker, tmp_path: Path) -> None:
    """In a process that is not a trial, too: here while a text is tokenized, without our checks."""
    keys = {"tokenizer.ggml.model": "t5", "tokenizer.ggml.add_bos_token": True}
    path = rewritten(
        gguf_of("packed-multiply", shape=SHAPE),
        tmp_path / "out.gguf",
        metadata=keys,
        drop=["tokenizer.ggml.bos_token_id"],
    )
    program = """
import sys
from bitexport.runtime.library import bind
api = bind().llama_cpp
model = api.llama_model_load_from_file(sys.argv[1].encode(), api.llama_model_default_params())
api.llama_tokenize(api.llama_model_get_vocab(model), b"a", 1, (api.llama_token * 8)(), 8, True, True)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode < 0
    assert done.stderr.startswith("llama.cpp ends the process: ")
    assert "GGML_ASSERT(special_bos_id != LLAMA_TOKEN_NULL) failed" in done.stderr
    assert done.stderr.count("\n") == 1
