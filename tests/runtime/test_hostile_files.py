"""Files that ended the process inside libllama: each is refused in a line that names the fault, or works."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitexport
from bitexport.errors import GGUFError, UsageError
from bitexport.gguf import writer
from bitexport.gguf.checks import check_file
from bitexport.gguf.checks.libllama import known
from bitexport.gguf.reader import GGUFTensor, read_gguf
from bitexport.gguf.types import F16, F32, I2_S, TYPES, TensorType
from bitexport.gguf.writer import RawValue
from bitexport.runtime.completion import Completion
from bitexport.runtime.limits import check_own_context
from bitexport.runtime.session import Session
from tests.support.gguf_files import TensorChange, rewritten
from tests.support.tiny_models import Shape, tiny_checkpoint

Maker = Callable[..., Path]

SHAPE = Shape(hidden=256, ffn=256, layers=1, heads=4, kv_heads=2, vocab=400, context=64)
TOKENS = "tokenizer.ggml.tokens"
TYPE_KEY = "tokenizer.ggml.token_type"


@pytest.fixture(scope="module")
def model(gguf_of: Maker) -> Path:
    return gguf_of("packed-multiply", shape=SHAPE, architecture="llama")


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the tokenizer of Llama 2, which has a token for each byte."""
    from bitexport.convert import convert

    folder = tmp_path_factory.mktemp("sentencepiece")
    shape = Shape(hidden=256, ffn=256, layers=1, heads=4, kv_heads=2, vocab=480, context=64)
    tiny_checkpoint(folder / "ckpt", "packed-multiply", shape=shape, architecture="llama", tokenizer="llama2")
    convert(folder / "ckpt", folder / "out.gguf", embed_type="f16")
    return folder / "out.gguf"


def refusals(path: Path) -> str:
    """The message with which every opener refuses a file."""
    messages = set()
    for opener in (Session, bitexport.load):
        with pytest.raises(GGUFError) as caught:
            opener(path)
        messages.add(str(caught.value))
    assert len(messages) == 1
    return messages.pop()


def works(path: Path) -> None:
    with Session(path, n_ctx=16) as session:
        assert np.isfinite(session.logits([1, 2, 3])).all()
    model = bitexport.load(path, n_ctx=32)
    model("a", max_tokens=2)
    model.close()


# -- alignment ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alignment", [1, 2, 4, 8, 16, 64])
@pytest.mark.parametrize("extra", [0, 8, 16, 24])
def test_any_alignment_loads(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alignment: int, extra: int
) -> None:
    """Tensors of a mapped file must start on multiples of 32; others are read instead."""
    monkeypatch.setattr(writer, "ALIGNMENT", alignment)
    keys = {"general.alignment": alignment, "general.name": "x" * extra}
    path = rewritten(model, tmp_path / "out.gguf", metadata=keys)
    with Session(path, n_ctx=16) as session, Session(model, n_ctx=16) as original:
        np.testing.assert_array_equal(session.logits([1, 2, 3]), original.logits([1, 2, 3]))
    bitexport.load(path, n_ctx=32).close()


# -- types of tensors ---------------------------------------------------------------------------------------


def as_type(name: str, kind: TensorType) -> TensorChange:
    """Store a tensor as another type, with zeros."""

    def change(tensor: GGUFTensor, old: TensorType, data: np.ndarray) -> tuple[TensorType, np.ndarray]:
        if tensor.name != name:
            return old, data
        return kind, np.zeros(kind.nbytes(tensor.shape), dtype=np.uint8)

    return change


@pytest.mark.parametrize("tensor", ["token_embd.weight", "blk.0.attn_q.weight", "blk.0.ffn_down.weight"])
@pytest.mark.parametrize("kind", ["q8_k", "i8", "i16", "i32", "i64", "f64"])
@pytest.mark.parametrize("architecture", ["llama", "xverse"])
def test_types_that_are_not_weights(
    model: Path, tmp_path: Path, architecture: str, tensor: str, kind: str
) -> None:
    path = rewritten(
        model, tmp_path / "out.gguf", architecture=architecture, change=as_type(tensor, TYPES[kind])
    )
    assert f"tensor '{tensor}' has type {kind}; expected a weight type" in refusals(path)


@pytest.mark.parametrize("architecture", ["llama", "xverse"])
@pytest.mark.parametrize("tensor", ["output_norm.weight", "blk.0.attn_norm.weight"])
def test_norms_that_are_not_float32(model: Path, tmp_path: Path, architecture: str, tensor: str) -> None:
    path = rewritten(model, tmp_path / "out.gguf", architecture=architecture, change=as_type(tensor, F16))
    assert f"tensor '{tensor}' has one dimension and type f16; expected f32" in refusals(path)


# -- shapes -------------------------------------------------------------------------------------------------


def with_tensor(source: Path, target: Path, name: str, shape: tuple[int, ...], kind: TensorType) -> Path:
    """A copy in which one tensor has another shape and type, and zeros."""
    file = read_gguf(source)
    specs = [
        writer.TensorSpec(t.name, shape if t.name == name else t.shape, kind if t.name == name else t.type)
        for t in file.tensors
    ]
    data = {tensor.name: np.array(file.data(tensor)) for tensor in file.tensors}
    data[name] = np.zeros(kind.nbytes(shape), dtype=np.uint8)
    keys = {key: RawValue(file.raw(key)) for key in file.metadata if key != "general.architecture"}
    architecture = file.metadata["general.architecture"]
    writer.write_gguf(target, architecture, keys, specs, lambda spec: [data[spec.name]])
    return target


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [
        ((0,), F32, "has shape [0]; expected no dimension of 0"),
        ((256, 0), F16, "has shape [256, 0]; expected no dimension of 0"),
        ((0, 256), I2_S, "has shape [0, 256]; expected no dimension of 0"),
        ((256,), I2_S, "has shape [256]; expected two or three dimensions"),
        ((1, 1, 1, 256), I2_S, "has shape [1, 1, 1, 256]; expected two or three dimensions"),
    ],
)
def test_shapes_that_no_tensor_has(
    model: Path,
    tmp_path: Path,
    run_cli: Callable[..., Any],
    shape: tuple[int, ...],
    kind: TensorType,
    message: str,
) -> None:
    path = with_tensor(model, tmp_path / "out.gguf", "blk.0.attn_k.weight", shape, kind)
    assert message in refusals(path)
    done = run_cli("inspect", path, "--health")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert message in done.stderr


def test_shapes_that_the_numbers_contradict(model: Path, tmp_path: Path) -> None:
    path = with_tensor(model, tmp_path / "out.gguf", "blk.0.attn_k.weight", (256, 256), I2_S)
    assert "'blk.0.attn_k.weight' has shape [256, 256]; expected [128, 256]" in refusals(path)


def test_tensors_of_another_architecture(model: Path, tmp_path: Path) -> None:
    names = {"blk.0.ffn_norm.weight": "blk.0.post_ffw_norm.weight", "output_norm.weight": "blk.0.nothing"}
    for old, new in names.items():
        path = rewritten(
            model,
            tmp_path / f"{new}.gguf",
            rename=lambda name, old=old, new=new: new if name == old else name,
        )
        assert re.search(f"tensor '{new}' (is not one that|does not belong to)", refusals(path))


# -- numbers ------------------------------------------------------------------------------------------------


def uint64(value: int) -> RawValue:
    return RawValue(struct.pack("<IQ", 10, value))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("context_length", 2**31, "is 2147483648; expected 1 to 16777216"),
        ("context_length", 2**32 - 1, "is 4294967295; expected 1 to 16777216"),
        ("context_length", uint64(2**40), "is 1099511627776; expected 1 to 16777216"),
        ("context_length", "4096", "is '4096'; expected 1 to 16777216"),
        ("context_length", [64, 64], "is an array of 2 int32; expected 1 to 16777216"),
        ("context_length", 64.0, "is 64.0; expected 1 to 16777216"),
        ("context_length", True, "is True; expected 1 to 16777216"),
        ("expert_count", 4, "expert_used_count is missing; expected at least one and at most 4"),
        ("expert_used_count", 1, "is 1; expected 0, as there are no experts"),
        ("expert_used_count", "1", "is '1'; expected a whole number, or one for each layer"),
        ("expert_group_count", 2, "is 2; expected 0, as there are no experts"),
        ("nextn_predict_layers", 1, "is 1; expected 0 to 0"),
        ("nextn_predict_layers", 2**32 - 1, "is 4294967295; expected 0 to 0"),
        ("rope.dimension_count", 2**32 - 2, "is 4294967294; expected 0 to 65536"),
        ("attention.layer_norm_rms_epsilon", 0.0, "is 0.0; expected a small positive number"),
        ("rope.scaling.factor", float("inf"), "is inf; expected a finite number"),
        ("block_count", "1", "is '1'; expected 1 to 512"),
        ("attention.head_count", "4", "is '4'; expected a whole number, or one for each layer"),
        ("embedding_length", [256], "is an array of 1 int32; expected 1 to 1048576"),
    ],
)
def test_numbers_of_the_wrong_size_or_kind(
    model: Path, tmp_path: Path, key: str, value: Any, message: str
) -> None:
    path = rewritten(model, tmp_path / "out.gguf", metadata={f"llama.{key}": value})
    assert message in refusals(path)


def test_ill_typed_used_experts(model: Path, tmp_path: Path) -> None:
    keys = {"llama.expert_count": 4, "llama.expert_used_count": "two"}
    path = rewritten(model, tmp_path / "out.gguf", metadata=keys)
    assert "llama.expert_used_count is 'two'; expected a whole number" in refusals(path)


def test_a_long_context_of_the_model_is_not_allocated_unasked(model: Path, tmp_path: Path) -> None:
    path = rewritten(model, tmp_path / "out.gguf", metadata={"llama.context_length": 1 << 24})
    with Session(path) as session:
        assert session.n_ctx == 4096
    keys = {"llama.context_length": 1 << 24, "llama.block_count": 512}
    path = rewritten(model, tmp_path / "huge.gguf", metadata=keys)
    with pytest.raises(UsageError, match=r"own context, 16777216 tokens, whose cache takes about \d+ GB"):
        check_own_context(path)
    bitexport.load(model, n_ctx=0).close()


# -- tokenizers ---------------------------------------------------------------------------------------------


def with_tokens(source: Path, target: Path, changes: Mapping[int, str], **keys: Any) -> Path:
    """A copy with other texts of some tokens, and other keys of the tokenizer."""
    tokens = read_gguf(source).elements(TOKENS)
    for number, text in changes.items():
        tokens[number] = text
    metadata = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    return rewritten(source, target, metadata={TOKENS: tokens, **metadata})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({50: "x" * 100_000}, "token 50 has 100000 bytes; expected at most 4096"),
        ({50: "a\0b"}, "token 50 has a byte 0"),
        ({50: "[EMPTY_51]", 51: ""}, "has '[EMPTY_51]' twice, with ids 50 and 51"),
    ],
)
def test_tokens_that_libllama_asserts_on(
    model: Path, tmp_path: Path, changes: Mapping[int, str], message: str
) -> None:
    assert message in refusals(with_tokens(model, tmp_path / "out.gguf", changes))


@pytest.mark.parametrize("changes", [{50: ""}, {50: "", 51: ""}, {50: "水"}, {50: "水水", 60: "<0x1>"}])
def test_odd_tokens_that_work(model: Path, tmp_path: Path, changes: Mapping[int, str]) -> None:
    works(with_tokens(model, tmp_path / "out.gguf", changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<0x1>", "'<0x1>' has type 6, a single byte; expected text such as '<0x0A>'"),
        ("水", "'水' has type 6, a single byte; expected text such as '<0x0A>'"),
        ("", "'[EMPTY_13]' has type 6, a single byte; expected text such as '<0x0A>'"),
    ],
)
def test_byte_tokens_with_other_texts(sentencepiece: Path, tmp_path: Path, text: str, message: str) -> None:
    assert read_gguf(sentencepiece).elements(TOKENS)[13] == "<0x0A>"
    assert message in refusals(with_tokens(sentencepiece, tmp_path / "out.gguf", {13: text}))


def test_bytes_without_a_token(sentencepiece: Path, tmp_path: Path) -> None:
    types = read_gguf(sentencepiece).elements(TYPE_KEY)
    types[13] = 1
    path = with_tokens(sentencepiece, tmp_path / "out.gguf", {13: "other"}, token_type=types)
    assert "has no token '<0x0A>', and 1 bytes without one in all" in refusals(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("llama", "has no token '<0x"),
        ("no_vocab", "tokenizer.ggml.model is 'no_vocab', so it has no tokens"),
        ("none", "tokenizer.ggml.model is 'none', so it has no tokens"),
        ("test", "tokenizer.ggml.model is 'test'; expected one of gpt2, "),
        ("rwkv", "has no token for the end of a line, which 'rwkv' needs"),
        ("", "tokenizer.ggml.model is ''; expected one of gpt2, "),
    ],
)
def test_another_tokenizer_on_the_vocabulary_of_gpt2(
    model: Path, tmp_path: Path, name: str, message: str
) -> None:
    path = rewritten(model, tmp_path / "out.gguf", metadata={"tokenizer.ggml.model": name})
    assert message in refusals(path)


def test_bert_with_token_types_reversed(sentencepiece: Path, tmp_path: Path) -> None:
    types = read_gguf(sentencepiece).elements(TYPE_KEY)[::-1]
    path = with_tokens(sentencepiece, tmp_path / "out.gguf", {}, model="bert", token_type=types)
    assert "a single byte; expected no such type in 'bert'" in refusals(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (TYPE_KEY, [1], "has 1 elements; expected one for each of the 400 tokens"),
        (TYPE_KEY, [1.0] * 400, "is an array of float32; expected int32"),
        (TYPE_KEY, [1] * 399 + [7], "token 399 has type 7; expected 0 to 6"),
        (TYPE_KEY, "1", "is '1'; expected an array"),
        (TOKENS, [1] * 400, "is an array of 400 int32; expected an array of strings"),
        (TOKENS, [], "is missing; expected an array of strings"),
        ("tokenizer.ggml.scores", [0.0], "has 1 elements; expected one for each of the 400 tokens"),
    ],
)
def test_lists_of_the_wrong_length_or_type(
    model: Path, tmp_path: Path, key: str, value: Sequence[Any] | str, message: str
) -> None:
    path = rewritten(model, tmp_path / "out.gguf", metadata={key: value}, drop=[key])
    assert message in refusals(path)


def test_a_beginning_that_does_not_exist(model: Path, tmp_path: Path) -> None:
    path = rewritten(
        model,
        tmp_path / "out.gguf",
        metadata={"tokenizer.ggml.model": "bert"},
        drop=["tokenizer.ggml.seperator_token_id"],
    )
    check_file(read_gguf(path))  # the ids that libllama assumes exist
    keys = {"tokenizer.ggml.model": "t5", "tokenizer.ggml.add_bos_token": True}
    path = rewritten(model, tmp_path / "two.gguf", metadata=keys, drop=["tokenizer.ggml.bos_token_id"])
    assert "tokenizer.ggml.bos_token_id is missing, but this token is added to each text" in refusals(path)


# -- architectures ------------------------------------------------------------------------------------------


def test_an_unknown_architecture(model: Path, tmp_path: Path) -> None:
    path = rewritten(model, tmp_path / "out.gguf", architecture="lama")
    assert (
        "general.architecture is 'lama'; expected one that this llama.cpp knows, such as llama"
        in refusals(path)
    )


def test_every_architecture_on_the_tensors_of_llama(model: Path, tmp_path: Path) -> None:
    """An error, whatever the graph asserts; or a graph that really runs these tensors."""
    names = sorted(known().architectures)
    for name in names:
        rewritten(model, tmp_path / f"{name}.gguf", architecture=name)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.support.programs.open_all",
            *(tmp_path / f"{name}.gguf" for name in names),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout.splitlines()[-1:] + done.stderr.splitlines()[-3:]
    outcomes = dict(zip(names, map(json.loads, done.stdout.splitlines()), strict=True))
    assert outcomes["llama"] == {"Session": "works", "load": "works"}
    for name in ("smallthinker", "llada-moe", "paddleocr", "mamba"):
        assert all("error" in outcome for outcome in outcomes[name].values()), (name, outcomes[name])


def test_models_that_cannot_continue_a_text(model: Path, tmp_path: Path) -> None:
    """A diffusion model has no cache of earlier tokens; only ``generate`` looked for it."""
    path = rewritten(model, tmp_path / "out.gguf", architecture="llada")
    loaded = bitexport.load(path, n_ctx=32)
    for use in (
        lambda: list(Completion(path, "a", max_tokens=2)),
        lambda: loaded.eval([1]),
        lambda: loaded("a"),
    ):
        with pytest.raises(UsageError, match="has no cache of earlier tokens"):
            use()
    loaded.close()
