"""Checkpoints that would fill the memory, run for hours or hang: one error each, soon."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytest

from bitexport.checkpoint.torch_file import read_torch_file
from bitexport.convert import convert
from bitexport.errors import CheckpointError, GGUFError, TokenizerError
from bitexport.gguf.reader import read_gguf
from bitexport.inspect.driver import inspect
from bitexport.runtime.loading import load
from tests.support.tokenizer_files import edit

SECONDS = 40

Change = Callable[[Path], object]


@pytest.fixture(autouse=True)
def _soon(checkpoint_of: Callable[..., Path]) -> Iterator[None]:
    checkpoint_of("packed-multiply")  # made before the time begins

    def late(_number: int, _frame: FrameType | None) -> NoReturn:
        raise TimeoutError(f"still running after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def folder(checkpoint_of: Callable[..., Path], tmp_path: Path) -> Path:
    copy = tmp_path / "checkpoint"
    shutil.copytree(checkpoint_of("packed-multiply"), copy)
    return copy


def replace(path: Path, kind: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 1 << 40)


@pytest.mark.parametrize("kind", ["a FIFO", "a device", "1099511627776 bytes"])
@pytest.mark.parametrize(
    "name",
    [
        "tokenizer_config.json",
        "tokenizer.json",
        "config.json",
        "generation_config.json",
        "chat_template.jinja",
        "special_tokens_map.json",
        "modules.json",
        "merges.txt",
        "tokenizer.model",
        "additional_chat_templates/a.jinja",
    ],
)
def test_files_that_are_not_files(folder: Path, name: str, kind: str) -> None:
    replace(folder / name, kind)
    for use in (inspect, lambda path: convert(path, path / "out.gguf", embed_type="f16")):
        with pytest.raises(CheckpointError, match=rf"{name}.* {kind}.*; expected"):
            use(folder)


def test_large_files_that_nobody_reads(folder: Path) -> None:
    for name in ("train.json", "train_log.txt", "corpus.txt"):
        replace(folder / name, "1099511627776 bytes")
    convert(folder, folder.parent / "out.gguf", embed_type="f16")


@pytest.mark.parametrize("kind", ["a FIFO", "a device"])
def test_a_gguf_path_that_is_not_a_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.gguf"
    replace(path, kind)
    for use in (read_gguf, load):
        with pytest.raises(GGUFError, match=f"it is {kind}"):
            use(path)


@pytest.mark.parametrize(
    ("key", "value", "most"),
    [
        ("num_hidden_layers", 10**9, 512),
        ("max_position_embeddings", 10**9, 2**24),
        ("vocab_size", 2**31 - 1, 2**24),
        ("num_experts", 10**6, 1024),
    ],
)
def test_sizes_that_no_model_has(folder: Path, key: str, value: int, most: int) -> None:
    edit(folder, lambda c: c.update({key: value}), "config.json")
    message = f"config.json: {key} is {value}; expected at most {most}: correct it"
    with pytest.raises(CheckpointError, match=message):
        inspect(folder)
    edit(folder, lambda c: c.update({key: 1, "text_config": {key: value}}), "config.json")
    with pytest.raises(CheckpointError, match=f"config.json: text_config.{key} is {value}"):
        inspect(folder)


def more_tensors(folder: Path, added: dict[str, Any]) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.dumps({**json.loads(data[8 : 8 + size]), **added}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + size :])


@pytest.mark.parametrize(
    ("added", "message"),
    [
        (
            {f"x{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(400_000)},
            r"the header has 4000\d\d entries; expected at most 250000 tensors",
        ),
        (
            {"x": {"dtype": "F32", "shape": [0] * 6_000_000, "data_offsets": [0, 0]}},
            "expected at most 250000",
        ),
        ({"x": {"dtype": "F32", "shape": [0] * 100, "data_offsets": [0, 0]}}, "is not a list of sizes"),
        ({"x": {"dtype": "F32", "shape": [2**63, 0], "data_offsets": [0, 0]}}, "is not a list of sizes"),
    ],
    ids=["empty tensors", "values", "dimensions", "size"],
)
def test_headers_without_an_end(folder: Path, added: dict[str, Any], message: str) -> None:
    more_tensors(folder, added)
    with pytest.raises(CheckpointError, match=message):
        inspect(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"[" + b"[]," * 2_000_000 + b"[]]", "more than the 4194304 bytes"),
        ("tokenizer_config.json", b'{"a":[' + b"[]," * 3_000_000 + b"[]]}", "has about 60000.. values"),
    ],
)
def test_json_that_takes_far_more_memory_than_bytes(
    folder: Path, file: str, content: bytes, message: str
) -> None:
    (folder / file).write_bytes(content)
    with pytest.raises((CheckpointError, TokenizerError), match=f"{file}.*{message}"):
        convert(folder, folder / "out.gguf", embed_type="f16")


def post_processor(pieces: int, tokens: int) -> dict[str, Any]:
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "X", "type_id": 0}}] * pieces + [sequence],
        "pair": [sequence, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"X": {"id": "X", "ids": [1] * tokens, "tokens": ["a"] * tokens}},
    }


def pre_tokenizer(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    end = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, end]}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PARTS = {"type": "Split", "pattern": {"String": "a"}, "behavior": "Isolated", "invert": False}
DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"post_processor": post_processor(10_000, 10_000)}, "needs more than|takes too long"),
        ({"post_processor": post_processor(100, 100)}, 'makes 10001 tokens of "a"; expected at most 104'),
        ({"pre_tokenizer": pre_tokenizer("(")}, "not a tokenizer .*Oniguruma error"),
        ({"pre_tokenizer": pre_tokenizer(r"(\w+\s*)+$!")}, "panicked .*retry-limit"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES] * 40}},
            "needs more than|takes too long",
        ),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [PARTS] * 100_000}},
            "takes too long to load or to encode",
        ),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [DOUBLE] * 40}},
            "needs more than|takes too long",
        ),
    ],
    ids=["10^8", "10^4", "damaged", "backtracking", "bytes of bytes", "steps", "doubled"],
)
def test_tokenizers_without_an_end(
    folder: Path, change: dict[str, Any], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    edit(folder, lambda document: document.update(change))
    with pytest.raises(TokenizerError, match=f"tokenizer.json: .*({message}).*download it again"):
        convert(folder, folder / "out.gguf", embed_type="f16")
    assert capfd.readouterr().err == ""  # where a panic of the library prints its stack


def test_the_reference_refuses_the_same_tokenizers(folder: Path) -> None:
    from bitexport.reference.model import load_tokenizer

    load_tokenizer(folder)
    edit(folder, lambda document: document.update(post_processor=post_processor(100, 100)))
    with pytest.raises(TokenizerError, match="makes 10001 tokens"):
        load_tokenizer(folder)
    replace(folder / "special_tokens_map.json", "a FIFO")
    with pytest.raises(CheckpointError, match=r"special_tokens_map.json is a FIFO"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ([r"(.+)+!"], "repeats a group"),
        ([r".*.*.*.*.*.*!"], "more than 3 of"),
        (["a?" * 30 + "a" * 30], "more than 1048576 ways"),
        (["([ab]|a[ab])" * 30 + "!"], "more than 1048576 ways"),
        ([rf".*.*.*{n}!" for n in range(30)], "more than 1048576 ways"),
        (["a" * 10_000], "has 10000 characters; expected at most 500"),
        (["a"] * 10_000, "has 10000 entries; expected at most 2000"),
    ],
)
def test_patterns_that_take_hours(folder: Path, patterns: list[str], message: str) -> None:
    edit(folder, lambda c: c["quantization_config"].update(modules_to_not_convert=patterns), "config.json")
    with pytest.raises(CheckpointError, match=f"modules_to_not_convert .*{message}"):
        convert(folder, folder / "out.gguf", embed_type="f16")


def test_patterns_of_real_checkpoints(folder: Path) -> None:
    patterns = [
        "lm_head",
        *(rf"model.layers.{n}.self_attn.q_proj" for n in range(100, 400)),
        *(rf".*\.{n}\..*_proj.*" for n in range(100, 110)),
        rf"model\.layers\.({'|'.join(map(str, range(60, 99)))})\.(?:self_attn|mlp)\.(q|k|v|o|up|down)_proj",
        r"model\.layers\.\d+\.mlp(?:\.experts)?\.\d+\.(gate|up)_proj",
    ]
    edit(folder, lambda c: c["quantization_config"].update(modules_to_not_convert=patterns), "config.json")
    convert(folder, folder.parent / "out.gguf", embed_type="f16")


def test_a_million_ends_of_generation(folder: Path) -> None:
    content = {"eos_token_id": [1, *range(10**6, 10**6 + 400_000)]}
    (folder / "generation_config.json").write_text(json.dumps(content, separators=(",", ":")))
    report = convert(folder, folder / "out.gguf", embed_type="f16")
    found = [each for each in report.warnings if "eos_token_id" in each]
    assert len(found) == 4
    assert found[-1] == "generation_config.json: eos_token_id has 399997 more that are not tokens"


def pickled(path: Path, program: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
    return path


def test_a_pickle_that_fills_the_memory(tmp_path: Path) -> None:
    put = b"\x80\x02}r" + struct.pack("<I", 2**31 - 1) + b"."  # the number of a place in its table
    assert read_torch_file(pickled(tmp_path / "a.bin", put)) == {}
    lists: list[Any] = []
    for _ in range(60):
        lists = [lists, lists]  # 2^60 in all

    class Tensor:
        def __reduce__(self) -> Any:
            return _rebuild_tensor_v2, (None, 0, tuple(lists), ())

    program = pickle.dumps({"a": Tensor()}, 2).replace(__name__.encode(), b"torch._utils")
    with pytest.raises(CheckpointError, match="its pickle is damaged"):
        read_torch_file(pickled(tmp_path / "b.bin", program))


def _rebuild_tensor_v2(*_: Any) -> None:
    """In place of PyTorch's, whose module's name is put into the pickle."""
