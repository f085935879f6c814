"""Numbers in a GGUF file on which libllama asserts: an error that names the key instead of an abort."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import bitexport
from bitexport.errors import GGUFError
from bitexport.gguf.checks import check_file
from bitexport.gguf.checks.hyperparameters import check_hyperparameters
from bitexport.gguf.reader import read_gguf
from bitexport.gguf.types import F32
from bitexport.gguf.writer import MetadataValue, TensorSpec, write_gguf
from bitexport.runtime.session import Session

PREFIX = {"bitnet": "bitnet-b1.58", "llama": "llama"}

# key, value, and the error message after the key
CASES: list[tuple[str, int | float, str]] = [
    ("block_count", 100_000, "is 100000; expected 1 to 512"),
    ("block_count", 0, "is 0; expected 1 to 512"),
    ("rope.dimension_count", 4096, "is 4096; expected an even number up to the head size of 64"),
    ("rope.dimension_count", 31, "is 31; expected an even number"),
    ("rope.dimension_count", 0, "is 0; expected an even number"),
    ("attention.head_count", 0, "is 0; expected at least 1"),
    ("attention.head_count_kv", 0, "is 0; expected a divisor of the 4 heads"),
    ("attention.head_count_kv", 3, "is 3; expected a divisor of the 4 heads"),
    ("embedding_length", 0, "is 0; expected 1 to 1048576"),
    ("rope.freq_base", 0.0, "is 0.0; expected a positive number"),
    ("rope.freq_base", float("nan"), "is nan; expected a positive number"),
    ("attention.layer_norm_rms_epsilon", -1.0, "is -1.0; expected a small positive number"),
    ("attention.layer_norm_rms_epsilon", float("nan"), "is nan; expected a small positive number"),
]


def patched(source: Path, target: Path, key: str, value: int | float) -> Path:
    """A copy with another value of a uint32 or float32 key."""
    content = bytearray(source.read_bytes())
    name = struct.pack("<Q", len(key)) + key.encode()
    at = content.index(name) + len(name) + 4
    struct.pack_into("<f" if isinstance(value, float) else "<I", content, at, value)
    target.write_bytes(content)
    return target


@pytest.mark.parametrize("architecture", PREFIX)
@pytest.mark.parametrize(("key", "value", "message"), CASES)
def test_numbers_that_would_crash_libllama(
    gguf_of: Callable[..., Path],
    tmp_path: Path,
    architecture: str,
    key: str,
    value: int | float,
    message: str,
) -> None:
    key = f"{PREFIX[architecture]}.{key}"
    bad = patched(gguf_of("packed-multiply", architecture=architecture), tmp_path / "bad.gguf", key, value)
    for opener in (Session, bitexport.load):
        with pytest.raises(GGUFError, match=r"bad\.gguf") as caught:
            opener(bad)
        assert f"{key} {message}" in str(caught.value)


def header(path: Path, architecture: str, **metadata: MetadataValue) -> Path:
    """A file with these keys, in which ``__`` stands for a dot, and one small tensor."""
    keys = {key.replace("__", "."): value for key, value in metadata.items()}
    spec = TensorSpec("output_norm.weight", (4,), F32)
    write_gguf(path, architecture, keys, [spec], lambda _: [np.zeros(4, dtype=np.float32)])
    return path


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            {"qwen2moe__rope__scaling__type": "sideways"},
            "qwen2moe.rope.scaling.type is 'sideways'; expected one of none",
        ),
        ({"qwen2moe__expert_count": 1025}, "qwen2moe.expert_count is 1025; expected at most 1024"),
        ({"qwen2moe__expert_used_count": 2}, "qwen2moe.expert_used_count is 2; expected 0"),
        (
            {"qwen2moe__expert_count": 4, "qwen2moe__expert_used_count": 5},
            "qwen2moe.expert_used_count is 5; expected at least one and at most 4",
        ),
        ({"qwen2moe__block_count": "many"}, "qwen2moe.block_count is 'many'; expected 1 to 512"),
        (
            {
                "qwen2moe__attention__head_count": 1,
                "tokenizer__ggml__model": "gpt2",
                "tokenizer__ggml__tokens": ["a", "b"],
                "tokenizer__ggml__token_type": [1],
            },
            "tokenizer.ggml.token_type has 1 elements; expected one for each of the 2 tokens",
        ),
    ],
)
def test_numbers_that_are_checked_for_every_architecture(
    tmp_path: Path, metadata: dict[str, MetadataValue], message: str
) -> None:
    file = read_gguf(header(tmp_path / "x.gguf", "qwen2moe", **metadata))
    with pytest.raises(GGUFError) as caught:
        check_file(file)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "metadata"),
    [
        ("mamba", {"mamba__attention__head_count": 0, "mamba__embedding_length": 8}),
        ("llama", {"llama__attention__head_count": [4, 2], "llama__embedding_length": 8}),
        (
            "qwen2moe",
            {
                "qwen2moe__expert_count": 8,
                "qwen2moe__expert_used_count": 2,
                "qwen2moe__attention__head_count": 1,
            },
        ),
        ("deci", {"deci__feed_forward_length": [8, 0], "deci__attention__head_count": [0, 1]}),
    ],
)
def test_numbers_that_only_some_architectures_have(
    tmp_path: Path, architecture: str, metadata: dict[str, MetadataValue]
) -> None:
    """Layers may have no heads, and numbers of their own."""
    check_hyperparameters(read_gguf(header(tmp_path / "x.gguf", architecture, **metadata)))


def _with_type(source: Path, target: Path, tensor: bytes, dimensions: int, number: int) -> Path:
    content = bytearray(source.read_bytes())
    at = content.index(struct.pack("<Q", len(tensor)) + tensor) + 8 + len(tensor) + 4 + 8 * dimensions
    struct.pack_into("<I", content, at, number)
    target.write_bytes(content)
    return target


@pytest.mark.parametrize("architecture", PREFIX)
@pytest.mark.parametrize(
    ("tensor", "dimensions", "number", "message"),
    [
        (b"output_norm.weight", 1, 2, "has one dimension and type q4_0; expected f32"),
        (b"token_embd.weight", 2, 25, "has type i16; expected a weight type"),
    ],
)
def test_types_that_would_crash_libllama(
    gguf_of: Callable[..., Path],
    tmp_path: Path,
    architecture: str,
    tensor: bytes,
    dimensions: int,
    number: int,
    message: str,
) -> None:
    """Found by the fuzzer."""
    source = gguf_of("packed-divide", architecture=architecture)
    with pytest.raises(GGUFError, match=f"'{tensor.decode()}' {message}"):
        Session(_with_type(source, tmp_path / "out.gguf", tensor, dimensions, number))


def test_two_tokens_with_the_same_text(gguf_of: Callable[..., Path], tmp_path: Path) -> None:
    """Found by the fuzzer."""
    content = gguf_of("packed-divide").read_bytes()
    token = struct.pack("<Q", 1)
    assert token + b"5" in content
    (tmp_path / "out.gguf").write_bytes(content.replace(token + b"5", token + b"6", 1))
    with pytest.raises(GGUFError, match="has '6' twice, with ids "):
        Session(tmp_path / "out.gguf")
