"""Generation: stop texts and the probabilities of tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from bitexport.errors import UsageError
from bitexport.runtime.completion import Completion, Sampling
from bitexport.runtime.generation import StopTexts
from bitexport.runtime.library import bind
from bitexport.runtime.loading import load
from tests.support.cli import one_line
from tests.support.tiny_models import Shape

Maker = Callable[..., Path]
Cli = Callable[..., "CompletedProcess[str]"]
PROMPT = "def add(left, right):\n"


@pytest.fixture(scope="module")
def model(gguf_of: Maker) -> Path:
    return gguf_of("packed-multiply")


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("text", "stops", "expected", "found"),
    [
        ("one two three", ["two"], "one ", True),
        ("one two three", ["three", "two"], "one ", True),
        ("aaab", ["aab"], "a", True),
        ("one tw", ["two"], "one tw", False),
        ("\n\n### user", ["### user", "\n### user"], "\n", True),
        ("nothing", [], "nothing", False),
    ],
)
def test_stop_texts(size: int, text: str, stops: list[str], expected: str, found: bool) -> None:
    """However the text is divided."""
    cut = StopTexts(stops)
    shown = ""
    for begin in range(0, len(text), size):
        shown += cut.add(text[begin : begin + size])
        if cut.found:
            break
        assert not any(stop in shown for stop in stops)
    assert (shown + cut.rest(), cut.found) == (expected, found)


def test_nothing_is_held_back_longer_than_needed() -> None:
    cut = StopTexts(["END"])
    assert cut.add("some E") == "some "
    assert cut.add("nd") == "End"


def test_a_completion_ends_before_a_stop_text(model: Path) -> None:
    whole = "".join(Completion(model, PROMPT, sampling=Sampling(seed=3), max_tokens=40))
    stop = whole[10:13]
    completion = Completion(model, PROMPT, sampling=Sampling(seed=3), max_tokens=40, stop=[stop])
    text = "".join(completion)
    assert text == whole[: whole.index(stop)]
    assert completion.finish_reason == "stop"
    with pytest.raises(UsageError, match="stop text is empty"):
        Completion(model, PROMPT, stop=[""])


def test_probabilities_are_those_of_the_tokens_themselves(shipped: Path) -> None:
    """Not of their neighbours; and before sampling options: against the logits of each position."""
    sampling = Sampling(temperature=5.0, top_k=7, repeat_penalty=1.5, seed=2)
    completion = Completion(shipped, PROMPT, sampling=sampling, max_tokens=12, threads=2, logprobs=4)
    list(completion)
    assert len(completion.probabilities) == completion.tokens > 3
    llama = load(shipped, n_ctx=1024, n_threads=2, n_threads_batch=2)
    following = llama.tokenize(PROMPT.encode(), special=True)
    for found in completion.probabilities:
        llama.eval(following)
        pointer = bind().llama_cpp.llama_get_logits_ith(llama.ctx, -1)
        logits = np.ctypeslib.as_array(pointer, shape=(llama.n_vocab(),)).astype(np.float64)
        row = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        assert found.chosen.logprob == pytest.approx(row[found.chosen.token], abs=1e-6)
        assert [each.token for each in found.alternatives] == np.argsort(-row, kind="stable")[:4].tolist()
        assert [each.logprob for each in found.alternatives] == pytest.approx(
            row[[each.token for each in found.alternatives]].tolist(), abs=1e-6
        )
        following = [found.chosen.token]
    llama.close()


def test_the_command_shows_log_probabilities(model: Path, run_cli: Cli) -> None:
    arguments = ("run", model, "-p", PROMPT, "-n", "4", "--temp", "0", "--logprobs", "5")
    document = json.loads(run_cli(*arguments, "--json", "-q").stdout)
    assert len(document["logprobs"]) == 4
    for entry in document["logprobs"]:
        assert entry.keys() == {"token", "text", "logprob", "top"}
        assert len(entry["top"]) == 5
        assert entry["top"][0]["token"] == entry["token"]  # greedy
        assert entry["logprob"] <= 0
    plain = run_cli(*arguments, "-q")
    assert "log p" in plain.stdout
    assert f"{document['logprobs'][3]['logprob']:.4f}" in plain.stdout
    assert "--json shows all 5 alternatives" in plain.stdout


def test_prompts_from_a_file_and_from_stdin(model: Path, run_cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text(PROMPT + "naïve ☃", encoding="utf-8")
    brief = ("--n-predict", "4", "--temp", "0", "--json", "-q")
    texts = [
        json.loads(done.stdout)["completion"]
        for done in (
            run_cli("run", model, "--prompt", PROMPT + "naïve ☃", *brief),
            run_cli("run", model, "-f", tmp_path / "prompt.txt", *brief),
            run_cli("run", model, "-p", "-", *brief, input=PROMPT + "naïve ☃"),
        )
    ]
    assert len(set(texts)) == 1
    assert "both --prompt and --file" in one_line(run_cli("run", model, "-p", "x", "-f", "y"), 2)
    assert "--file /none" in one_line(run_cli("run", model, "-f", "/none"), 2)


def test_grammars_of_the_command(model: Path, run_cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "yes.gbnf").write_text('root ::= "yes"')
    (tmp_path / "one.json").write_text('{"const": 1}')
    (tmp_path / "empty").write_text("")
    run = ("run", model, "-p", "x", "-q")
    assert run_cli(*run, "--grammar", tmp_path / "yes.gbnf").stdout == "yes\n"
    for schema in (tmp_path / "one.json", '{"const": 1}'):
        assert run_cli(*run, "--json-schema", schema).stdout.strip() == "1"
    assert "exclude each other" in one_line(run_cli(*run, "--grammar", "a", "--json-schema", "{}"), 2)
    assert "the file is empty" in one_line(run_cli(*run, "--grammar", tmp_path / "empty"), 2)
    assert "--json-schema /none" in one_line(run_cli(*run, "--json-schema", "/none"), 2)


def test_a_context_beyond_what_the_model_was_trained_for(gguf_of: Maker, run_cli: Cli) -> None:
    short = gguf_of("packed-multiply", shape=Shape(context=256))
    for command in (["run", short, "-p", "x", "-n", "1"], ["chat", short, "--no-template"]):
        done = run_cli(*command, "--ctx-size", "512", "-q", stdin=None if command[0] == "run" else 0)
        assert "a context of 512 tokens is more than the 256" in done.stderr
        assert done.stderr.count("\n") == 1
        assert "warning" not in run_cli(*command, "-c", "256", "-q").stderr
