"""Texts decoded in blocks, as ``bitexport run`` writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

import bitexport
from bitexport.blocks import BlockDecoding, BlockRule
from bitexport.cli import app, run
from bitexport.convert import convert
from bitexport.errors import BitexportWarning, UsageError
from bitexport.runtime import facts
from bitexport.runtime.block_llama import decode_blocks
from bitexport.runtime.block_session import BlockSession
from bitexport.runtime.completion import Completion, Sampling
from tests.support.diffusion import as_block_diffusion
from tests.support.gguf_files import rewritten
from tests.support.tiny_models import Shape

Maker = Callable[..., Path]
Cli = Callable[..., "CompletedProcess[str]"]
GREEDY = Sampling(temperature=0)
PROMPT = "def add(left, right):\n"


@pytest.fixture(scope="module")
def model(checkpoint_of: Maker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blocks")
    convert(as_block_diffusion(checkpoint_of(), folder / "c"), folder / "c.gguf", embed_type="f16")
    return folder / "c.gguf"


def test_a_file_for_blocks_is_decoded_in_blocks_by_itself(model: Path) -> None:
    completion = Completion(model, PROMPT, sampling=GREEDY, rule=BlockRule("greedy"), max_tokens=11)
    pieces = list(completion)
    assert completion.tokens == 11
    assert completion.finish_reason == "length"
    assert completion.passes is not None
    assert completion.passes >= 9
    with BlockSession(model, n_ctx=64, exact=False) as session:
        ids = session.tokenize(PROMPT)
        decoding = BlockDecoding(
            session, ids, session.diffusion, rule=BlockRule("greedy"), max_tokens=11, n_ctx=64
        )
        text = b"".join(session.piece(token, special=False) for token in decoding)
    assert completion.prompt_tokens == len(ids)
    assert "".join(pieces) == text.decode("utf-8", errors="ignore")
    assert len(pieces) > 1  # it is streamed


def test_some_rows_are_those_of_all(model: Path) -> None:
    with BlockSession(model, n_ctx=64) as session:
        ids = session.tokenize(PROMPT)[:4]
        all_rows = session.evaluate(ids, range(4), keep=False)
        for rows in ([0, 2], [3], [1, 2, 3]):
            np.testing.assert_allclose(session.evaluate(ids, rows, keep=False), all_rows[rows], atol=1e-4)
        with pytest.raises(UsageError, match="tokens do not fit a context"):
            session.evaluate([5] * 300, [0], keep=False)


def test_plain_decoding_of_such_a_file_is_said(model: Path) -> None:
    with pytest.warns(BitexportWarning, match="is a model of block diffusion, decoded here as a plain one"):
        bitexport.load(model, n_ctx=64).close()
    with pytest.warns(BitexportWarning, match="decoded here as a plain one"):
        completion = Completion(model, PROMPT, sampling=GREEDY, decode="plain", max_tokens=4)
    assert "".join(completion)
    assert completion.passes is None


def test_a_plain_file_is_not_decoded_in_blocks(gguf_of: Maker) -> None:
    with pytest.raises(UsageError, match=r"is a plain model: it has no bitexport.diffusion.block_size"):
        Completion(gguf_of(), PROMPT, decode="block")
    with pytest.raises(UsageError, match="the rule greedy settles tokens of blocks"):
        Completion(gguf_of(), PROMPT, rule=BlockRule("greedy"))
    with pytest.raises(UsageError, match="decode is 'blocks'; expected one of auto, plain, block"):
        Completion(gguf_of(), PROMPT, decode="blocks")


def test_sliding_windows_are_refused(model: Path, tmp_path: Path) -> None:
    window = {"bitnet-b1.58.attention.sliding_window": 128}
    other = rewritten(model, tmp_path / "window.gguf", metadata=window)
    with pytest.raises(UsageError, match=r"sliding_window is 128; blocks are decoded only with attention to"):
        BlockSession(other)
    with pytest.warns(BitexportWarning, match="decoded here as a plain one"):
        llama = bitexport.load(other, n_ctx=64)
    with pytest.raises(UsageError, match=r"sliding_window is 128; .* use create_completion"):
        decode_blocks(llama, [5])
    llama.close()


def test_options_that_need_the_text_in_order_are_refused(model: Path) -> None:
    with pytest.raises(UsageError, match="a repeat penalty needs the tokens in order"):
        Completion(model, PROMPT, sampling=Sampling(repeat_penalty=1.1))
    with pytest.raises(UsageError, match="a grammar needs the tokens in order"):
        Completion(model, PROMPT, sampling=Sampling(grammar='root ::= "a"'))
    with pytest.raises(UsageError, match="use --decode plain with --logprobs"):
        Completion(model, PROMPT, logprobs=1)
    for decode in ("auto", "block"):
        with pytest.raises(UsageError, match="leave --draft out, or use --decode plain"):
            Completion(model, PROMPT, draft="lookup", decode=decode)


@pytest.mark.filterwarnings("ignore:.*decoded here as a plain one")
def test_plain_decoding_may_have_drafts(model: Path) -> None:
    plain = {"sampling": GREEDY, "decode": "plain", "max_tokens": 12}
    drafted = Completion(model, PROMPT, draft="lookup", **plain)
    assert "".join(drafted) == "".join(Completion(model, PROMPT, **plain))
    assert drafted.drafts.passes > 0


def test_the_size_of_a_block_is_remembered(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert facts.facts_of(model).block_size == 4
    monkeypatch.setattr(facts, "_found", None)  # from here on it must be remembered
    assert facts.facts_of(model).block_size == 4


def test_temperature_and_seed_are_obeyed(model: Path) -> None:
    def text(seed: int, temperature: float) -> str:
        sampling = Sampling(temperature=temperature, top_k=0, top_p=1.0, seed=seed)
        return "".join(Completion(model, PROMPT, sampling=sampling, max_tokens=16))

    assert text(1, 2.0) == text(1, 2.0)
    assert len({text(seed, 2.0) for seed in (1, 2, 3)}) == 3
    assert len({text(seed, 0.0) for seed in (1, 2, 3)}) == 1


def test_long_prompts_and_the_end_of_the_context(model: Path) -> None:
    """A context that is not a multiple of the block; a prompt of many blocks; one that fills the context."""
    with BlockSession(model, n_ctx=256, exact=False) as session:
        words = PROMPT * 40
        ids = session.tokenize(words)
        context = session.n_ctx
    assert len(ids) > context
    with pytest.raises(UsageError, match=f"the prompt has {len(ids)} tokens, but the context only {context}"):
        Completion(model, words, n_ctx=context)
    fitting = next(n for n in range(40, 0, -1) if len_of(model, PROMPT * n) < context)
    completion = Completion(model, PROMPT * fitting, sampling=GREEDY, max_tokens=100, n_ctx=context)
    room = context - completion.prompt_tokens
    assert completion.max_tokens == min(100, room)
    list(completion)
    assert completion.finish_reason == "length"
    assert completion.tokens == completion.max_tokens


def len_of(model: Path, text: str) -> int:
    return len(_tokenizer(model).tokenize(text.encode(), special=True))


_opened: dict[Path, object] = {}


def _tokenizer(model: Path):  # type: ignore[no-untyped-def]
    if model not in _opened:
        with pytest.warns(BitexportWarning):
            _opened[model] = bitexport.load(model, n_ctx=64)
    return _opened[model]


def test_a_block_may_fill_the_context_but_for_a_token(checkpoint_of: Maker, tmp_path: Path) -> None:
    folder = as_block_diffusion(checkpoint_of(), tmp_path / "c", block_size=255)
    convert(folder, tmp_path / "c.gguf", embed_type="f16")
    completion = Completion(tmp_path / "c.gguf", PROMPT, sampling=GREEDY, max_tokens=3)
    assert "".join(completion)
    assert completion.tokens == 3


@pytest.mark.filterwarnings("ignore:.*decoded here as a plain one")
def test_a_block_longer_than_the_context_is_refused(checkpoint_of: Maker, tmp_path: Path) -> None:
    folder = as_block_diffusion(checkpoint_of(shape=Shape(context=1024)), tmp_path / "c", block_size=300)
    convert(folder, tmp_path / "c.gguf", embed_type="f16")
    with pytest.raises(UsageError, match=r"blocks of 300 tokens, .* only 256; set a larger --ctx"):
        Completion(tmp_path / "c.gguf", PROMPT, n_ctx=256)
    llama = bitexport.load(tmp_path / "c.gguf", n_ctx=100)
    with pytest.raises(UsageError, match="load it with n_ctx, n_batch and n_ubatch of more than 300"):
        decode_blocks(llama, [5])
    llama.close()


def test_a_text_ends_before_a_stop_text(model: Path) -> None:
    whole = "".join(Completion(model, PROMPT, sampling=GREEDY, max_tokens=16))
    stop = whole[5:8]
    completion = Completion(model, PROMPT, sampling=GREEDY, max_tokens=16, stop=[stop])
    assert "".join(completion) == whole[: whole.index(stop)]
    assert completion.finish_reason == "stop"


def test_the_command(model: Path, run_cli: Cli) -> None:
    options = ("-p", PROMPT, "-n", "9", "--temperature", "0")
    shown = run_cli("run", model, *options, "--rule", "greedy")
    assert shown.returncode == 0, shown.stderr
    assert "tokens per pass in" in " ".join(shown.stderr.split())
    found = json.loads(run_cli("run", model, *options, "--threshold", "0.01", "--json").stdout)
    assert found["tokens"] == 9
    assert 0 < found["passes"] < 9
    refused = run_cli("run", model, *options, "--rule", "best")
    assert refused.returncode == 2
    assert "the rule 'best' is unknown; expected one of greedy, confidence, adaptive" in refused.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--decode", "blok"), "decode is 'blok'; expected one of auto, plain, block"),
        (("--rule", "greedy", "--threshold", "0.5"), "the rule greedy has no threshold, and 0.5 was given"),
    ],
)
def test_wrong_options_are_refused_before_a_download(
    options: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: object) -> Path:
        raise AssertionError("nothing is to be downloaded")

    monkeypatch.setattr(run, "local_path", download)
    with pytest.raises(UsageError, match=message):
        app(["run", "owner/repo", "-p", "a", *options], standalone_mode=False)


@pytest.mark.filterwarnings("ignore:.*decoded here as a plain one")
def test_a_loaded_model_decodes_blocks_and_then_plain_text_again(model: Path) -> None:
    completion = Completion(model, PROMPT, sampling=GREEDY, max_tokens=11)
    expected = "".join(completion)
    llama = bitexport.load(model, n_ctx=64)
    ids = llama.tokenize(PROMPT.encode(), special=True)
    plain = llama.create_completion(ids, max_tokens=8, temperature=0)["choices"][0]["text"]
    tokens = list(decode_blocks(llama, ids, sampling=GREEDY, max_tokens=11))
    assert llama.detokenize(tokens, prev_tokens=ids).decode("utf-8", errors="ignore") == expected
    next(decode_blocks(llama, ids, max_tokens=11))  # left early
    assert llama.create_completion(ids, max_tokens=8, temperature=0)["choices"][0]["text"] == plain
    with pytest.raises(UsageError, match="the prompt has no tokens"):
        decode_blocks(llama, [])
    with pytest.raises(UsageError, match=r"the context only 256; shorten the prompt or set a larger n_ctx"):
        decode_blocks(llama, [5] * 256)
    with pytest.raises(UsageError, match="max_tokens is 0; expected 1 or more"):
        decode_blocks(llama, ids, max_tokens=0)
    with pytest.raises(UsageError, match=r"a repeat penalty needs .* use create_completion"):
        decode_blocks(llama, ids, sampling=Sampling(repeat_penalty=1.1))
    llama.close()
    small = bitexport.load(model, n_ctx=64, n_batch=2, n_ubatch=2)
    with pytest.raises(UsageError, match="has blocks of 4 tokens, and this context evaluates 2 at once"):
        decode_blocks(small, ids)
    small.close()


@pytest.mark.filterwarnings("ignore:.*decoded here as a plain one")
def test_a_call_between_two_tokens_is_right_and_noticed(model: Path) -> None:
    llama = bitexport.load(model, n_ctx=64)
    ids = llama.tokenize(PROMPT.encode(), special=True)

    def plain() -> str:
        return str(llama.create_completion(ids, max_tokens=8, temperature=0)["choices"][0]["text"])

    def blocks() -> Iterator[int]:
        return decode_blocks(llama, ids, sampling=GREEDY, max_tokens=20)

    text, tokens = plain(), list(blocks())
    between = blocks()
    assert next(between) == tokens[0]
    assert plain() == text
    with pytest.raises(
        UsageError, match="has evaluated something else since the last token of decode_blocks"
    ):
        list(between)
    assert plain() == text
    first, second = blocks(), blocks()
    assert (next(first), next(second)) == (tokens[0], tokens[0])
    first.close()  # the cache is the second's
    assert list(second) == tokens[1:]
    first, second = blocks(), blocks()
    next(first)
    next(second)
    with pytest.raises(UsageError, match="load the model twice"):
        list(first)
    assert list(second) == tokens[1:]
    left, used = blocks(), blocks()
    next(left)
    next(used)
    llama.close()
    left.close()
    with pytest.raises(UsageError, match="was closed while decode_blocks was in use"):
        list(used)


def test_a_loaded_plain_model_is_refused(gguf_of: Maker) -> None:
    llama = bitexport.load(gguf_of(), n_ctx=64)
    with pytest.raises(UsageError, match="is a plain model"):
        decode_blocks(llama, [5])
    llama.close()
