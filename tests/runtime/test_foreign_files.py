"""Files of other converters: missing information is derived, with a warning, or the file is rejected."""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

import bitexport
from bitexport.convert import convert
from bitexport.errors import BitexportWarning, GGUFError, TokenizerError
from bitexport.gguf.reader import read_gguf
from bitexport.gguf.types import F16, F32, I2_S
from bitexport.gguf.writer import MetadataValue, TensorSpec, write_gguf
from bitexport.runtime.session import Session
from bitexport.tokenizer import pre_tokenizer
from bitexport.tokenizer.hard_strings import HARD_STRINGS
from bitexport.tokenizer.missing_pre_tokenizer import derived_pre, lacks_pre
from tests.support.gguf_files import as_microsoft_writes, rewritten
from tests.support.repository import REPOSITORY

Ggufs = Callable[..., Path]

#: Vocabularies of real models, in the llama.cpp that we build.
VOCABULARIES = REPOSITORY / "build" / "native" / "llama.cpp-source" / "models"
CHECK_TEXT = "The quick brown fox; check 123 that's   known\n\n\tЁж 12345 don't?"


@pytest.fixture
def known(gguf_of: Ggufs, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """``known(kind, name)``: a tiny model's file; llama.cpp's table knows its tokenizer as ``name``."""
    table: dict[str, Any] = {"check_text": CHECK_TEXT, "hashes": {}}
    monkeypatch.setattr(pre_tokenizer, "_table", lambda: table)

    def make(kind: str, name: str) -> Path:
        path = gguf_of("packed-multiply", tokenizer=kind)
        from tests.support.tiny_models import tiny_tokenizer

        ids = tiny_tokenizer(400, kind).encode(CHECK_TEXT).ids
        table["hashes"][sha256(str(ids).encode()).hexdigest()] = name
        return path

    return make


def test_the_vocabulary_of_llama_3_is_recognised(tmp_path: Path) -> None:
    """The vocabulary of Microsoft's 2B4T file, which names no pre-tokenizer."""
    for name, pre in (("llama-bpe", "llama-bpe"), ("gpt-2", "gpt-2")):
        source = VOCABULARIES / f"ggml-vocab-{name}.gguf"
        assert not lacks_pre(read_gguf(source))
        bare = read_gguf(rewritten(source, tmp_path / "bare.gguf", drop=["tokenizer.ggml.pre"]))
        assert lacks_pre(bare)
        assert derived_pre(bare) == pre
    added = rewritten(
        VOCABULARIES / "ggml-vocab-llama-bpe.gguf",
        tmp_path / "bos.gguf",
        metadata={"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.pre": "default"},
    )
    assert lacks_pre(read_gguf(added))
    assert derived_pre(read_gguf(added)) == "llama-bpe"


def test_llama_cpp_test_strings_get_the_same_tokens_without_a_name(tmp_path: Path) -> None:
    """Strings and tokens of llama.cpp's tests for the vocabulary of Llama 3."""
    source = VOCABULARIES / "ggml-vocab-llama-bpe.gguf"
    texts = Path(f"{source}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")[:-1]
    tokens = [list(map(int, line.split())) for line in Path(f"{source}.out").read_text().splitlines()]
    bare = rewritten(source, tmp_path / "bare.gguf", drop=["tokenizer.ggml.pre"])
    with pytest.warns(BitexportWarning, match="'llama-bpe' is assumed"):
        llama = bitexport.load(bare, vocab_only=True)
    found = [llama.tokenize(text.encode("utf-8"), add_bos=False, special=False) for text in texts]
    assert len(found) > 40
    assert found == tokens


def test_a_sentencepiece_vocabulary_needs_no_pre_tokenizer() -> None:
    assert not lacks_pre(read_gguf(VOCABULARIES / "ggml-vocab-llama-spm.gguf"))


def test_words_that_are_not_the_result_of_merges(
    gguf_of: Ggufs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in Llama 3: a word that is a token is encoded as that token, without merges."""
    from tests.support.tiny_models import tiny_tokenizer

    description = json.loads(tiny_tokenizer(400, "llama3").to_str())
    merges = description["model"]["merges"] = description["model"]["merges"][:20]
    ids = {}
    for ignoring in (True, False):
        description["model"]["ignore_merges"] = ignoring
        ids[ignoring] = Tokenizer.from_str(json.dumps(description)).encode(CHECK_TEXT).ids
    assert ids[True] != ids[False]
    path = rewritten(
        gguf_of("packed-multiply", tokenizer="llama3"),
        tmp_path / "x.gguf",
        drop=["tokenizer.ggml.pre"],
        metadata={"tokenizer.ggml.merges": [" ".join(pair) for pair in merges]},
    )
    hashes = {sha256(str(ids[True]).encode()).hexdigest(): "llama-bpe"}
    monkeypatch.setattr(pre_tokenizer, "_table", lambda: {"check_text": CHECK_TEXT, "hashes": hashes})
    assert derived_pre(read_gguf(path)) == "llama-bpe"


@pytest.mark.parametrize(
    ("kind", "name"),
    [("llama3", "llama-bpe"), ("smaug", "smaug-bpe"), ("qwen2", "qwen2"), ("smollm", "smollm")],
)
def test_text_gets_the_same_tokens_as_with_a_named_pre_tokenizer(
    known: Callable[..., Path], tmp_path: Path, checkpoint_of: Callable[..., Path], kind: str, name: str
) -> None:
    foreign = as_microsoft_writes(known(kind, name), tmp_path / "foreign.gguf")
    reference = Tokenizer.from_file(str(checkpoint_of("packed-multiply", tokenizer=kind) / "tokenizer.json"))
    with pytest.warns(BitexportWarning) as caught:
        session = Session(foreign, n_ctx=64)
    texts = [str(warning.message) for warning in caught]
    assert "architecture 'bitnet-25' is run as 'bitnet-b1.58'" in texts[0]
    assert f"'{name}' is assumed" in texts[1]
    assert caught[0].filename == __file__
    with session:
        for text in HARD_STRINGS:
            assert session.tokenize(text) == reference.encode(text).ids
    with pytest.warns(BitexportWarning) as caught:
        llama = bitexport.load(foreign, n_ctx=64)
    assert f"'{name}' is assumed" in str(caught[1].message)
    for text in HARD_STRINGS:
        assert llama.tokenize(text.encode(), special=True) == reference.encode(text).ids


def test_the_same_logits_with_the_old_architecture_name(known: Callable[..., Path], tmp_path: Path) -> None:
    ours = known("gpt2", "gpt-2")
    foreign = as_microsoft_writes(ours, tmp_path / "foreign.gguf")
    ids = [5, 17, 101, 42]
    with Session(ours, n_ctx=64) as session:
        expected = session.logits(ids)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BitexportWarning)
        with Session(foreign, n_ctx=64) as session:
            np.testing.assert_array_equal(session.logits(ids), expected)


def test_an_unknown_vocabulary_is_rejected(gguf_of: Ggufs, tmp_path: Path) -> None:
    foreign = as_microsoft_writes(gguf_of("packed-multiply"), tmp_path / "foreign.gguf")
    for opener in (Session, bitexport.load):
        with pytest.raises(
            TokenizerError, match=r"foreign\.gguf does not name its pre-tokenizer.*--pre-tokenizer NAME"
        ):
            opener(foreign)
    bitexport.load(foreign, n_ctx=64, kv_overrides={"tokenizer.ggml.pre": "gpt-2"}).close()
    # the advice in the error message
    convert(foreign, tmp_path / "named.gguf", pre_tokenizer="gpt-2")
    with Session(gguf_of("packed-multiply"), n_ctx=64) as session:
        expected = [session.tokenize(text) for text in HARD_STRINGS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BitexportWarning)
        with Session(tmp_path / "named.gguf", n_ctx=64) as session:
            assert [session.tokenize(text) for text in HARD_STRINGS] == expected


def test_a_derived_name_is_written_when_converting(known: Callable[..., Path], tmp_path: Path) -> None:
    foreign = as_microsoft_writes(known("llama3", "llama-bpe"), tmp_path / "foreign.gguf")
    report = convert(foreign, tmp_path / "x.gguf", type="tq2_0")
    assert read_gguf(tmp_path / "x.gguf").metadata["tokenizer.ggml.pre"] == "llama-bpe"
    assert "tokenizer.ggml.pre missing -> llama-bpe" in report.changed
    assert any("'llama-bpe' is written" in text for text in report.warnings)


def test_the_command_line_warns(
    tmp_path: Path, gguf_of: Ggufs, run_cli: Callable[..., CompletedProcess[str]]
) -> None:
    old = rewritten(gguf_of("packed-multiply"), tmp_path / "old.gguf", architecture="bitnet-25")
    done = run_cli("run", old, "--prompt", "def", "--max-tokens", "2", "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    assert done.stderr.startswith("warning: old.gguf: architecture 'bitnet-25' is run as 'bitnet-b1.58'")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("key", "value", "good"),
    [
        ("tokenizer.ggml.bos_token_id", 512, False),
        ("tokenizer.ggml.eos_token_id", 2**32 - 1, False),
        ("tokenizer.ggml.eot_token_id", 100_000, False),
        ("tokenizer.ggml.padding_token_id", 512, False),
        ("tokenizer.ggml.padding_token_id", 2**32 - 1, True),
        ("tokenizer.ggml.eos_token_id", 511, True),
    ],
)
def test_special_tokens_outside_the_vocabulary(
    gguf_of: Ggufs, tmp_path: Path, key: str, value: int, good: bool
) -> None:
    path = rewritten(gguf_of("packed-multiply"), tmp_path / "x.gguf", metadata={key: value})
    if good:
        Session(path, n_ctx=64).close()
        return
    for opener in (Session, bitexport.load):
        with pytest.raises(GGUFError, match=rf"x\.gguf: {key} is {value}, but .* has ids 0 to 511"):
            opener(path)


def header(path: Path, name: str, shape: tuple[int, ...]) -> Path:
    spec = TensorSpec(name, shape, I2_S)
    keys: dict[str, MetadataValue] = {"bitnet-b1.58.attention.head_count": 1}
    write_gguf(path, "bitnet-b1.58", keys, [spec], lambda spec: [np.zeros(spec.nbytes, np.uint8)])
    return path


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "blk.0.ffn_down.weight",
            (4, 65536 + 128),
            r"\[4, 65664\]; expected .* at most 65536.*q2_0 or f16",
        ),
        ("blk.0.ffn_down.weight", (128, 6), r"\[128, 6\]; expected rows of a multiple of 4.*--type f16"),
        ("blk.0.ffn_down.weight", (2, 4, 128), r"\[2, 4, 128\]; expected two dimensions"),
        ("token_embd.weight", (4, 128), "an embedding is a lookup table"),
    ],
)
def test_i2_s_tensors_that_no_kernel_supports(
    tmp_path: Path, name: str, shape: tuple[int, ...], message: str
) -> None:
    path = header(tmp_path / "x.gguf", name, shape)
    for opener in (Session, bitexport.load):
        with pytest.raises(GGUFError, match=rf"x\.gguf: tensor '{name}' of type i2_s has shape .*{message}"):
            opener(path)


def entry(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
    return struct.pack("<Q", len(name)) + name.encode() + dims + struct.pack("<IQ", kind, offset)


@pytest.mark.parametrize(
    ("nbytes", "layout"),
    [
        (96 * 512 // 4, "codes without a scale"),
        (96 * 512 // 4 + 4 * 96, "codes and a float32 scale for each row"),
        (96 * 512 // 4 + 2 * 96, "codes and a float16 scale for each row"),
        (96 * 512 // 128 * 34, "blocks of 128 with a float16 scale each"),
        (96 * 512 // 64 * 18, "blocks of 64 with a float16 scale each"),
    ],
)
def test_other_layouts_with_number_36_are_recognised_by_size(
    tmp_path: Path, nbytes: int, layout: str
) -> None:
    room = nbytes + -nbytes % 32
    second = entry("next", (4,), F32.id, room)
    for tensors, after in (([second], 32), ([], 0)):
        head = b"GGUF" + struct.pack("<IQQ", 3, 1 + len(tensors), 0)
        head += entry("blk.0.attn_q.weight", (96, 512), 36, 0) + b"".join(tensors)
        path = tmp_path / "x.gguf"
        path.write_bytes(head + bytes(-len(head) % 32) + bytes(room + after))
        with pytest.raises(
            GGUFError, match=rf"'blk\.0\.attn_q\.weight'.*another layout under.*{layout}"
        ) as e:
            read_gguf(path)
        assert "damaged" not in str(e.value)
        for opener in (Session, bitexport.load):
            with pytest.raises(GGUFError, match=layout):
                opener(path)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (37, "type 37: it is I8_S"),
        (38, "type 38: it is TL1.*ARM"),
        (39, "it may be TL2.*x86"),
        (99, "type 99"),
    ],
)
def test_other_types_of_microsoft(tmp_path: Path, number: int, message: str) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, 0)
    head += entry("a", (96, 256), number, 0) + entry("b", (4,), F16.id, 5120)
    path = tmp_path / "x.gguf"
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(5120 + 32))
    with pytest.raises(GGUFError, match=message):
        read_gguf(path)


def test_blocks_of_64(tmp_path: Path) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + entry("a", (3, 64), 36, 0)
    path = tmp_path / "x.gguf"
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(96))
    with pytest.raises(GGUFError, match=r"\[3, 64\].*not a multiple of its block of 128: .*on ARM"):
        read_gguf(path)
