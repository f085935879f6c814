"""Block diffusion in config.json, in a GGUF file, and in what inspect shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

import bitexport
from bitexport.checkpoint.block_diffusion import BlockDiffusion, diffusion_settings
from bitexport.convert import convert
from bitexport.errors import CheckpointError, GGUFError
from bitexport.gguf.diffusion_settings import diffusion_of
from bitexport.gguf.reader import read_gguf
from bitexport.inspect import inspect
from bitexport.runtime import loading
from bitexport.runtime.completion import Completion
from tests.support.diffusion import MASK, as_block_diffusion
from tests.support.gguf_files import rewritten

Maker = Callable[..., Path]
BLOCK_SIZE = "bitexport.diffusion.block_size"


@pytest.fixture(scope="module")
def checkpoint(checkpoint_of: Maker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_block_diffusion(checkpoint_of(), tmp_path_factory.mktemp("diffusion") / "c")


@pytest.fixture(scope="module")
def gguf(checkpoint: Path) -> Path:
    convert(checkpoint, checkpoint.parent / "c.gguf", embed_type="f16")
    return checkpoint.parent / "c.gguf"


def test_the_file_and_inspect_say_what_config_json_says(
    checkpoint: Path, gguf: Path, run_cli: Callable[..., CompletedProcess[str]]
) -> None:
    metadata = read_gguf(gguf).metadata
    assert metadata["tokenizer.ggml.mask_token_id"] == MASK
    assert metadata["diffusion.shift_logits"] is True
    assert metadata[BLOCK_SIZE] == 4
    expected = BlockDiffusion(4, MASK, token_shift=True)
    assert diffusion_of(read_gguf(gguf)) == expected
    for path in (checkpoint, gguf):
        assert inspect(path).diffusion == expected
        shown = run_cli("inspect", path)
        assert f"block diffusion: blocks of 4 tokens, mask token {MASK}" in shown.stdout
    found = json.loads(run_cli("inspect", gguf, "--json").stdout)
    assert found["diffusion"] == {"block_size": 4, "mask_token_id": MASK, "token_shift": True}
    # a file made from the file keeps the keys
    convert(gguf, gguf.parent / "again.gguf", type="tq2_0")
    assert diffusion_of(read_gguf(gguf.parent / "again.gguf")) == expected


def test_a_plain_model_has_no_such_keys(gguf_of: Maker, checkpoint_of: Maker) -> None:
    assert BLOCK_SIZE not in read_gguf(gguf_of()).metadata
    assert inspect(gguf_of()).diffusion is None
    assert inspect(checkpoint_of()).diffusion is None


def test_the_keys_of_fast_dllm_are_read() -> None:
    config = {"bd_size": 32, "mask_token_id": 151665, "vocab_size": 151936}
    assert diffusion_settings(config) == BlockDiffusion(32, 151665, token_shift=True)
    with pytest.raises(CheckpointError, match="names no mask token; add mask_token_id"):
        diffusion_settings({"bd_size": 32, "vocab_size": 151936})


def test_numbers_of_the_language_model_may_be_nested() -> None:
    text = {"vocab_size": 512, "max_position_embeddings": 256}

    def found(size: int, mask: int) -> BlockDiffusion | None:
        own = {"block_size": size, "mask_token_id": mask}
        return diffusion_settings({"block_diffusion": own, "text_config": text})

    assert found(8, 511) == BlockDiffusion(8, 511)
    with pytest.raises(CheckpointError, match="the mask token of block diffusion is 512"):
        found(8, 512)
    with pytest.raises(CheckpointError, match="has 256 tokens, and the context only 256"):
        found(256, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_token_id": None}, "names no mask token; add mask_token_id to block_diffusion"),
        ({"mask_token_id": 512}, "the mask token of block diffusion is 512, but the vocabulary has 512"),
        ({"mask_token_id": -1}, "the mask token of block diffusion is -1"),
        ({"mask_token_id": "x"}, "the mask token of block diffusion is 'x'"),
        ({"block_size": 1}, "a block of block diffusion has 1 tokens; expected 2 to 512"),
        ({"block_size": 100_000}, "a block of block diffusion has 100000 tokens; expected 2 to 512"),
        ({"block_size": None}, "a block of block diffusion has None tokens"),
        ({"block_size": 256}, "has 256 tokens, and the context only 256"),
        ({"token_shift": "yes"}, "token_shift of block_diffusion is 'yes'; expected true or false"),
    ],
)
def test_bad_settings_are_refused(
    checkpoint_of: Maker, tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    folder = as_block_diffusion(checkpoint_of(), tmp_path / "c", **settings)
    with pytest.raises(CheckpointError, match=message):
        convert(folder, tmp_path / "c.gguf")
    assert not (tmp_path / "c.gguf").exists()
    assert any(message in problem for problem in inspect(folder).problems)


@pytest.mark.parametrize(
    ("metadata", "drop", "message"),
    [
        ({}, ["tokenizer.ggml.mask_token_id"], "without a mask token; expected tokenizer.ggml.mask_token_id"),
        ({"tokenizer.ggml.mask_token_id": 512}, [], "mask_token_id is 512, but the vocabulary has"),
        ({BLOCK_SIZE: 1}, [], "block_size is 1; expected 2 to 512"),
        ({BLOCK_SIZE: 1 << 30}, [], "block_size is 1073741824; expected 2 to 512"),
        ({BLOCK_SIZE: "8"}, [], "block_size is '8'; expected 2 to 512"),
        ({"diffusion.shift_logits": 3}, [], "shift_logits is 3; expected true or false"),
    ],
)
def test_a_bad_file_is_refused(
    gguf: Path, tmp_path: Path, metadata: dict[str, object], drop: list[str], message: str
) -> None:
    keys = {**metadata}
    bad = rewritten(gguf, tmp_path / "bad.gguf", metadata=keys, drop=[*drop, *keys])  # type: ignore[arg-type]
    with pytest.raises(GGUFError, match=message):
        Completion(bad, "def add")
    report = inspect(bad)
    assert any(message in problem for problem in report.problems)
    assert report.tensors
    assert report.diffusion is None


def test_inspect_shows_a_bad_file(
    gguf: Path, tmp_path: Path, run_cli: Callable[..., CompletedProcess[str]]
) -> None:
    bad = rewritten(gguf, tmp_path / "bad.gguf", metadata={BLOCK_SIZE: 1}, drop=[BLOCK_SIZE])
    shown = run_cli("inspect", bad)
    assert shown.returncode == 0
    assert "block_size is 1; expected 2 to 512" in " ".join(shown.stderr.split())
    assert "blk.0.attn_q.weight" in shown.stdout
    assert "not checked" not in run_cli("inspect", bad, "--health").stdout  # all tensors were


def test_a_bad_file_is_refused_before_it_is_open(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = rewritten(gguf, tmp_path / "bad.gguf", metadata={BLOCK_SIZE: 1}, drop=[BLOCK_SIZE])
    opened: list[object] = []
    opening = loading._open
    monkeypatch.setattr(loading, "_open", lambda *given: opened.append(given) or opening(*given))
    with pytest.raises(GGUFError, match="block_size is 1"):
        bitexport.load(bad, n_ctx=64)
    assert not opened
    bitexport.load(bad, n_ctx=64, vocab_only=True).close()  # does not decode
    assert opened
