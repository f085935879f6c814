"""Completions and ``bitexport run``: text is streamed in complete characters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from bitexport.errors import GGUFError, UsageError
from bitexport.runtime.completion import Completion, Sampling
from bitexport.runtime.session import Session
from tests.support.decoding import greedy
from tests.support.repository import REPOSITORY
from tests.support.tiny_models import Shape
from tests.support.token_limits import check_token_limits

Maker = Callable[..., Path]
Cli = Callable[..., "CompletedProcess[str]"]
PROMPT = "def add(left, right):\n"
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def model(gguf_of: Maker) -> Path:
    return gguf_of("packed-multiply")


def test_greedy_text_is_that_of_the_session(model: Path) -> None:
    completion = Completion(model, PROMPT, sampling=GREEDY, max_tokens=8, threads=2)
    text = "".join(completion)
    with Session(model, n_ctx=64, exact=False) as session:
        ids = session.tokenize(PROMPT)
        tokens = greedy(session, ids, 8)
        expected = b"".join(map(session.piece, tokens)).decode("utf-8", errors="ignore")
    assert completion.prompt_tokens == len(ids)
    assert 1 not in tokens, "an end of text would end the completion early; choose another prompt"
    assert text == expected
    assert completion.tokens == 8
    assert completion.finish_reason == "length"


def test_same_seed_same_text(model: Path) -> None:
    def text(seed: int) -> str:
        hot = Sampling(temperature=300.0, top_k=0, top_p=1.0, seed=seed)
        return "".join(Completion(model, PROMPT, sampling=hot, max_tokens=24))

    assert text(1) == text(1)
    assert len({text(seed) for seed in (1, 2, 3)}) > 1


def test_pieces_are_complete_characters(model: Path) -> None:
    # sampling at a high temperature from a byte-level vocabulary gives bytes that are not complete characters
    pieces = list(
        Completion(
            model, "é", sampling=Sampling(temperature=500.0, top_k=0, top_p=1.0, seed=4), max_tokens=80
        )
    )
    assert pieces
    for piece in pieces:
        piece.encode("utf-8")  # no lone surrogates
        assert "\ufffd" not in piece


def test_the_context_limits_the_completion(model: Path) -> None:
    completion = Completion(model, PROMPT, sampling=GREEDY, max_tokens=1000, n_ctx=32)
    list(completion)
    assert completion.max_tokens < 1000
    assert completion.prompt_tokens + completion.tokens <= completion_context(32)


def completion_context(asked: int) -> int:
    """llama.cpp rounds the size of a context up to a multiple of 256."""
    return (asked + 255) // 256 * 256


def test_prompt_longer_than_the_context(model: Path) -> None:
    with pytest.raises(UsageError, match=r"the prompt has \d+ tokens, but the context only 256"):
        Completion(model, "word " * 300, n_ctx=256)


@pytest.mark.parametrize("values", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}])
def test_bad_sampling(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="expected temperature"):
        Sampling(**values)  # type: ignore[arg-type]


def test_zero_tokens_requested(model: Path) -> None:
    with pytest.raises(UsageError, match="max tokens is 0"):
        Completion(model, PROMPT, max_tokens=0)


def test_missing_model(tmp_path: Path) -> None:
    with pytest.raises(GGUFError):
        Completion(tmp_path / "none.gguf", PROMPT)


def test_command(model: Path, run_cli: Cli) -> None:
    arguments = ("run", model, "--prompt", PROMPT, "--max-tokens", "6", "--temperature", "0")
    plain = run_cli(*arguments)
    assert plain.returncode == 0, plain.stderr
    assert plain.stderr.count("\n") == 1
    assert "6 generated" in plain.stderr
    echoed = run_cli(*arguments, "--echo", "--quiet")
    assert echoed.stdout == PROMPT + plain.stdout
    assert echoed.stderr == ""
    document = json.loads(run_cli(*arguments, "--json", "--quiet").stdout)
    assert document["schema"] == 1
    assert document["completion"] == plain.stdout.removesuffix("\n")
    assert document["tokens"] == 6


def test_command_without_a_prompt(model: Path, run_cli: Cli) -> None:
    result = run_cli("run", model)
    assert result.returncode == 2
    assert "--prompt" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting(gguf_of: Maker, number: signal.Signals) -> None:
    long = gguf_of("packed-multiply", shape=Shape(hidden=512, ffn=2048, layers=8, context=4096), tied=False)
    process = subprocess.Popen(
        [
            sys.executable, "-m", "bitexport", "run", str(long), "--prompt", PROMPT, "--max-tokens", "4000",
            "--temperature", "5", "--seed", "1",
        ],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "BITEXPORT_DEBUG": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.read(1)  # wait for the first output
    time.sleep(0.05)
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.endswith(b"\n")
    assert error.decode().strip() == "interrupted"


def test_random_models_generate_as_many_tokens_as_asked_for(model: Path, tmp_path: Path) -> None:
    """Also inside characters of several bytes, and up to the end of the context."""
    assert check_token_limits(model, tmp_path, range(24)) == 24


def test_lone_bytes_up_to_the_end_of_the_context(model: Path) -> None:
    hot = Sampling(temperature=500.0, top_k=0, top_p=1.0, seed=11)
    completion = Completion(model, "é", sampling=hot, max_tokens=10_000, n_ctx=256, threads=1)
    list(completion)
    assert completion.finish_reason in ("length", "stop")
    assert completion.prompt_tokens + completion.tokens <= 256


def test_the_command_says_that_the_context_ends(model: Path, run_cli: Cli) -> None:
    arguments = ("run", model, "-p", "é", "-n", "9999", "-c", "256", "--temp", "500", "--top-k", "0")
    done = run_cli(*arguments, "--seed", "11", "--json", "--quiet")
    document = json.loads(done.stdout)
    room = 256 - document["prompt_tokens"]
    assert (done.returncode, document["tokens"], document["finish_reason"]) == (0, room, "length")
    assert done.stderr == f"warning: the context has room for {room} tokens instead of 9999\n"


def test_each_token_is_decoded_once(model: Path) -> None:
    """Decoding all tokens again for each unfinished character would take quadratic time."""
    hot = Sampling(temperature=500.0, top_k=0, top_p=1.0, seed=11)
    completion = Completion(model, "é", sampling=hot, max_tokens=200, threads=1)
    decoded: list[int] = []
    decode = completion._llama.detokenize

    def counting(tokens: list[int], **options: object) -> bytes:
        decoded.extend(tokens)
        return decode(tokens, **options)

    completion._llama.detokenize = counting
    list(completion)
    assert decoded == completion._generation.ids
    assert completion.tokens == 200
