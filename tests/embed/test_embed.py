"""Embedding models end to end: as published, converted, embedded, and compared with PyTorch."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import bitexport
from bitexport.cli import main
from bitexport.convert import convert
from bitexport.doctor import doctor
from bitexport.embed import embed
from bitexport.errors import GGUFError, UsageError
from bitexport.gguf.embedding_settings import settings_of
from bitexport.gguf.reader import read_gguf
from bitexport.parity.embedding import embedding_parity
from bitexport.reference import load_reference
from bitexport.reference.token_vectors import token_vectors
from bitexport.runtime.embedding import EmbeddingSession
from bitexport.runtime.trial import run_trial
from tests.support.embedding_models import (
    DOCUMENTS,
    MODELS,
    PROMPTS,
    QUERIES,
    SHAPE,
    embedding_checkpoint,
)
from tests.support.gguf_files import rewritten

Models = Callable[..., tuple[Path, Path]]


def in_pytorch(checkpoint: Path, texts: Sequence[str], pooling: str = "lasttoken") -> npt.NDArray[np.float32]:
    """Normalized embeddings, pooled here as sentence-transformers does: float32 ``[texts, hidden]``."""
    reference = load_reference(checkpoint)
    rows = []
    for text in texts:
        vectors = torch.from_numpy(token_vectors(reference, reference.tokenize(text)))
        row = {"lasttoken": vectors[-1], "cls_token": vectors[0], "mean_tokens": vectors.mean(0)}[pooling]
        rows.append(torch.nn.functional.normalize(row, dim=0))
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("architecture", MODELS)
def test_a_published_model_passes_parity_and_ranks_as_in_pytorch(model_of: Models, architecture: str) -> None:
    checkpoint, file = model_of(architecture)
    found = embedding_parity(checkpoint, file, DOCUMENTS)
    assert found.passed, found.verdict()
    assert found.judged[0].cosine_min >= 0.9999
    assert found.judged[1].vectors == len(DOCUMENTS)
    queries = embed(file, QUERIES, prompt_name="query")
    documents = embed(file, DOCUMENTS, prompt_name="document")
    assert queries.normalized
    assert queries.pooling == "last"
    assert queries.prompt == PROMPTS["query"]
    python = (
        in_pytorch(checkpoint, [PROMPTS["query"] + text for text in QUERIES]),
        in_pytorch(checkpoint, DOCUMENTS),
    )
    cpp = queries.array(), documents.array()
    assert cpp[0].shape == (len(QUERIES), SHAPE.hidden)
    assert (python[1] * cpp[1]).sum(1).min() > 0.999  # plain: rounding edges are not aligned
    expected, got = ((side[0] @ side[1].T) for side in (python, cpp))
    assert np.argsort(-got, axis=1).tolist() == np.argsort(-expected, axis=1).tolist()


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token"])
def test_every_pooling_is_that_of_pytorch(model_of: Models, pooling: str) -> None:
    checkpoint, file = model_of("Qwen3Model", pooling)
    expected = in_pytorch(checkpoint, DOCUMENTS, pooling)
    got = embed(file, DOCUMENTS).array()
    assert (expected * got).sum(1).min() > 0.9995
    assert embedding_parity(checkpoint, file, DOCUMENTS[:2]).passed


@pytest.mark.parametrize("pooling", ["lasttoken", "mean_tokens", "cls_token"])
def test_batches_do_not_change_the_result(model_of: Models, pooling: str) -> None:
    _, file = model_of("Gemma3TextModel", pooling)
    together = embed(file, DOCUMENTS).array()
    alone = embed(file, DOCUMENTS, batch_texts=1).array()
    in_parts = embed(file, DOCUMENTS, batch_tokens=16).array()  # some texts need several evaluations
    assert (together * alone).sum(1).min() > 0.99995
    assert (together * in_parts).sum(1).min() > 0.99995


def test_a_bidirectional_model(tmp_path: Path) -> None:
    for architecture, entry in (
        ("Qwen3Model", "is_causal"),
        ("Gemma3TextModel", "use_bidirectional_attention"),
    ):
        folder = tmp_path / architecture
        embedding_checkpoint(folder / "c", architecture, pooling="mean_tokens")
        config = json.loads((folder / "c" / "config.json").read_text())
        config[entry] = entry != "is_causal"
        (folder / "c" / "config.json").write_text(json.dumps(config))
        convert(folder / "c", folder / "m.gguf", embed_type="f16")
        found = embedding_parity(folder / "c", folder / "m.gguf", DOCUMENTS[:3])
        assert found.passed, found.verdict()
        both = embed(folder / "m.gguf", DOCUMENTS[:3], batch_tokens=8).array()
        expected = in_pytorch(folder / "c", DOCUMENTS[:3], "mean_tokens")
        assert (both * expected).sum(1).min() > 0.999


def test_a_bidirectional_gemma_without_more_norms(model_of: Models, tmp_path: Path) -> None:
    """llama.cpp's own graph of gemma3 ends the process when the sliding window goes to both sides."""
    _, file = model_of("Gemma3TextModel")
    plain = rewritten(
        file,
        tmp_path / "plain.gguf",
        metadata={"gemma3.attention.causal": False},
        rename=lambda name: None if "norm_in" in name else name,
    )
    with EmbeddingSession(plain, pooling=None, longest=12) as session:
        first, other = (session.token_vectors([*range(3, 14), last])[0] for last in (14, 15))
    assert np.isfinite(first).all()
    assert np.abs(first - other).max() > 1e-3 * np.abs(first).max(), "the first token sees the last one"


def test_a_gemma_with_biases_is_refused(model_of: Models, tmp_path: Path) -> None:
    """The graph with more norms would ignore them."""
    _, file = model_of("Gemma3TextModel")
    norm, bias = "blk.0.attn_output_norm_in.weight", "blk.0.attn_q.bias"  # of equal size
    wrong = rewritten(file, tmp_path / "wrong.gguf", rename=lambda name: bias if name == norm else name)
    assert b"cannot have biases" in run_trial(wrong, 4 << 30, 60, vocab_only=False).stderr
    with pytest.raises(GGUFError, match=r"'blk\.0\.attn_q\.bias' does not belong to"):
        EmbeddingSession(wrong, pooling=None, longest=8)


def test_load_returns_a_llama_that_embeds(model_of: Models) -> None:
    _, file = model_of()
    llama = bitexport.load(file, embedding=True)
    try:
        vectors = np.array([row["embedding"] for row in llama.create_embedding(DOCUMENTS)["data"]])
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        # llama.cpp's defaults: a float16 cache
        assert (vectors * embed(file, DOCUMENTS).array()).sum(1).min() > 0.999
        with pytest.raises(UsageError, match="load it without embedding=True"):
            llama("text", max_tokens=1)
    finally:
        llama.close()


def test_a_model_without_pooling_still_generates(gguf_of: Callable[..., Path]) -> None:
    llama = bitexport.load(gguf_of("master"), embedding=True)
    try:
        assert llama("def", max_tokens=1, temperature=0)["usage"]["completion_tokens"] == 1
    finally:
        llama.close()


def test_a_pooling_context_computes_no_logits(model_of: Models) -> None:
    """The head is the largest matrix of such a model."""
    _, file = model_of()
    with EmbeddingSession(file, pooling="last", longest=8) as session:
        list(session.text_vectors([[3, 4, 5]]))
        assert not session._api.llama_get_logits(session._context)
    with EmbeddingSession(file, pooling=None, longest=8) as session:
        assert session.token_vectors([3, 4, 5]).shape == (3, SHAPE.hidden)
        assert session._api.llama_get_logits(session._context)


def test_a_planted_fault_fails(model_of: Models, tmp_path: Path) -> None:
    checkpoint, file = model_of("Gemma3TextModel")
    parsed = read_gguf(file)
    tensor = next(t for t in parsed.tensors if t.name == "blk.1.ffn_down_norm_in.weight")
    content = bytearray(file.read_bytes())
    gains = np.frombuffer(content, np.float32, math.prod(tensor.shape), tensor.offset)
    content[tensor.offset : tensor.offset + tensor.nbytes] = (gains[::-1].copy()).tobytes()
    (tmp_path / "m.gguf").write_bytes(content)
    found = embedding_parity(checkpoint, tmp_path / "m.gguf", DOCUMENTS[:2])
    assert not found.passed
    assert "disagree" in found.verdict()
    convert(checkpoint, tmp_path / "mean.gguf", embed_type="f16", pooling="mean")
    other = embed(tmp_path / "mean.gguf", DOCUMENTS[:2]).array()
    assert (other * in_pytorch(checkpoint, DOCUMENTS[:2])).sum(1).max() < 0.99


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "there are no texts"),
        (["a", "  "], {}, "text 2 is empty"),
        (["a\0b"], {}, "text 1 contains NUL at character 1"),
        (["\udce4"], {}, "text 1 is not UTF-8"),
        (["word " * 400], {}, "tokens, more than the model's context of 256; shorten it, or cut it"),
        (["a"], {"prompt_name": "passage"}, "no prompt named 'passage'; expected one of query, document"),
        (["a"], {"prompt_name": "query", "prompt": "x"}, "both a prompt and the name of one"),
        (["a"], {"pooling": "max"}, "pooling 'max' is unknown; expected one of mean, cls, last"),
    ],
)
def test_bad_input(model_of: Models, texts: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        embed(model_of()[1], texts, **options)


def test_truncate_keeps_the_end_of_text(model_of: Models) -> None:
    checkpoint, file = model_of()
    (found,) = embed(file, ["word " * 400], truncate=True).embeddings
    assert found.truncated
    assert found.tokens == SHAPE.context
    reference = load_reference(checkpoint)
    ids = reference.tokenize("word " * 400)
    expected = token_vectors(reference, [*ids[: SHAPE.context - 1], ids[-1]])[-1]
    assert found.vector @ (expected / np.linalg.norm(expected)) > 0.999


def test_a_file_that_is_not_an_embedding_model(gguf_of: Callable[..., Path]) -> None:
    file = gguf_of("master")
    with pytest.raises(UsageError, match=r"not an embedding model.*--pooling mean \| cls \| last"):
        embed(file, ["text"])
    found = embed(file, ["text"], pooling="mean")
    assert found.pooling == "mean"
    assert np.linalg.norm(found.embeddings[0].vector) == pytest.approx(1, abs=1e-6)
    assert settings_of(read_gguf(file)) is None


def test_doctor_does_not_judge_text_that_a_model_does_not_write(model_of: Models) -> None:
    checkpoint, file = model_of()
    with pytest.raises(UsageError, match=r"embedding model \(Qwen3Model\).*`bitexport parity`"):
        doctor(checkpoint, file)


def test_a_damaged_pooling(model_of: Models, tmp_path: Path) -> None:
    content = bytearray(model_of()[1].read_bytes())
    at = content.index(b"bitnet-b1.58.pooling_type") + len(b"bitnet-b1.58.pooling_type") + 4
    content[at] = 4
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(
        GGUFError, match=r"pooling_type is 4, which is not supported; expected one of 1 \(mean\)"
    ):
        embed(tmp_path / "m.gguf", ["text"])


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, run in this process: loading PyTorch again takes seconds."""
    with pytest.raises(SystemExit) as ended, warnings.catch_warnings():
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0), *capsys.readouterr()


def test_the_command(model_of: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, file = model_of()
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(QUERIES) + "\n")
    code, output, error = command(
        capsys, "embed", file, "--text", "first", "--file", lines, "--prompt-name", "query", "--jsonl"
    )
    assert code == 0, error
    rows = [json.loads(line) for line in output.splitlines()]
    assert [row["text"] for row in rows] == ["first", *QUERIES]
    expected = embed(file, ["first", *QUERIES], prompt_name="query").array()
    np.testing.assert_allclose([row["embedding"] for row in rows], expected, atol=1e-5)
    code, output, _ = command(capsys, "embed", file, "--text", "x", "--json")
    document = json.loads(output)
    assert (code, document["schema"], document["dimension"]) == (0, 1, SHAPE.hidden)
    code, output, _ = command(capsys, "embed", file, "--text", "x")
    assert code == 0
    assert "pooling last, normalized" in output


def test_the_command_writes_npy(model_of: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, file = model_of()
    target = tmp_path / "out.npy"
    texts = [part for text in QUERIES for part in ("--text", text)]
    code, output, _ = command(capsys, "embed", file, *texts, "--npy", target, "--no-normalize")
    assert (code, output) == (0, "")
    saved = np.load(target)
    assert (saved.dtype, saved.shape) == (np.float32, (len(QUERIES), SHAPE.hidden))
    assert not np.allclose(np.linalg.norm(saved, axis=1), 1)
    code, _, error = command(capsys, "embed", file, "--text", "x", "--npy", target)
    assert code == 1
    assert "use --force" in error
    code, _, _ = command(capsys, "embed", file, "--text", "x", "--npy", target, "--force")
    assert (code, np.load(target).shape) == (0, (1, SHAPE.hidden))
    lines = tmp_path / "lines.txt"
    lines.write_text("one\n\nthree\n")
    code, _, error = command(capsys, "embed", file, "--file", lines)
    assert code == 2
    assert "text 2 is empty" in error


def test_the_parity_command(model_of: Models, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, file = model_of()
    code, output, error = command(capsys, "parity", checkpoint, file, "--prompt", DOCUMENTS[0], "--json")
    assert code == 0, error
    report = json.loads(output)
    assert report["passed"]
    assert report["pooled_cosine_min"] > 0.9999
    code, output, _ = command(capsys, "parity", checkpoint, file, "--prompt", DOCUMENTS[0])
    assert code == 0
    assert "PASS" in output
    code, output, error = command(
        capsys, "parity", checkpoint, file, "--prompt", DOCUMENTS[0], "--plain", "--min-cosine", "1"
    )
    assert code == 3
    assert "disagree" in error
    code, output, _ = command(capsys, "parity", checkpoint, file, "--prompt", "a b", "--layers")
    assert code == 0
    assert "no step diverges" in " ".join(output.split())
