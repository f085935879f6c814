"""What the checks let through: the vocabularies and the tensors that llama.cpp itself brings."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitexport.errors import GGUFError, NativeLibraryError
from bitexport.gguf.checks.hyperparameters import check_architecture, check_hyperparameters
from bitexport.gguf.checks.libllama import known
from bitexport.gguf.checks.vocabulary import KINDS, check_vocabulary
from bitexport.gguf.reader import read_gguf
from bitexport.runtime.trial import run_trial
from bitexport.system.native_files import DIRECTORY_VARIABLE, find_conversion_dir

VOCABULARIES = sorted((find_conversion_dir() / "models").glob("ggml-vocab-*.gguf"))


@pytest.mark.parametrize("path", VOCABULARIES, ids=lambda path: path.stem.removeprefix("ggml-vocab-"))
def test_the_vocabularies_of_llama_cpp(path: Path) -> None:
    """Real ones: Llama, BERT, GPT-2, Gemma 4, XLM-RoBERTa and others."""
    file = read_gguf(path)
    check_architecture(file)
    check_hyperparameters(file)
    check_vocabulary(file)
    assert run_trial(path, 2 << 30, 60, vocab_only=True).returncode == 0


def test_several_kinds_of_vocabulary_are_among_them() -> None:
    found = {read_gguf(path).metadata["tokenizer.ggml.model"] for path in VOCABULARIES}
    assert {"llama", "bert", "gpt2", "t5"} <= found <= set(KINDS)


@pytest.mark.parametrize(
    ("tensor", "operation"),
    [
        ("token_embd.weight", "get_rows"),
        ("blk.17.attn_q.weight", "mul_mat"),
        ("blk.17.attn_q.bias", "add"),
        ("blk.0.ffn_gate_exps.weight", "mul_mat_id"),
        ("blk.0.exp_probs_b.bias", "add"),
        ("blk.0.ffn.act", "div"),
        ("blk.0.ssm_a", "ssm_scan"),
        ("blk.0.attn_output_norm_in.weight", "mul"),
        ("enc.blk.3.attn_rel_b.weight", "get_rows"),
        ("convnext.2.dw.weight", "im2col"),
        ("blk.0.nothing.weight", None),
        ("blk.x.attn_q.weight", None),
        ("", None),
    ],
)
def test_what_libllama_does_with_a_tensor(tensor: str, operation: str | None) -> None:
    assert known().operation(tensor) == operation


def test_libraries_without_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As built before this version."""
    (tmp_path / "libllama.so").write_bytes(b"")
    (tmp_path / "libllama.dylib").write_bytes(b"")
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path))
    with pytest.raises(NativeLibraryError, match=r"architectures\.json cannot be read .*make native"):
        check_architecture(read_gguf(VOCABULARIES[0]))


def test_an_unknown_architecture(tmp_path: Path) -> None:
    from bitexport.gguf.writer import write_gguf

    write_gguf(tmp_path / "x.gguf", "llama2", {}, [], lambda _: [])
    with pytest.raises(GGUFError, match=r"general\.architecture is 'llama2'; expected one .* such as llama"):
        check_architecture(read_gguf(tmp_path / "x.gguf"))
