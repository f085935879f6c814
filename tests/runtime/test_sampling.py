"""Sampling: the text of earlier versions, the options, grammars and JSON schemas, and their mistakes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitexport.errors import BitexportError, UsageError
from bitexport.runtime.completion import Completion
from bitexport.runtime.grammar import json_schema_grammar
from bitexport.runtime.library import bind
from bitexport.runtime.loading import load
from bitexport.runtime.sampling import Sampler, Sampling
from bitexport.runtime.session import Session

Maker = Callable[..., Path]
PROMPT = "def add(left, right):\n"


@pytest.fixture(scope="module")
def vocab(shipped: Path) -> Iterator[Any]:
    with Session(shipped, n_ctx=32) as session:
        yield session._vocab


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0),
        Sampling(seed=1),
        Sampling(seed=2, temperature=1.3, top_k=0, top_p=1.0),
        Sampling(seed=3, top_k=20, top_p=0.8, min_p=0.1),
    ],
)
def test_the_text_is_that_of_llama_cpp_python(shipped: Path, sampling: Sampling) -> None:
    """``run`` used its sampler before it had one of its own: the same seed gives the same text."""
    ours = "".join(Completion(shipped, PROMPT, sampling=sampling, max_tokens=48, threads=2))
    llama = load(shipped, n_ctx=1024, n_threads=2, n_threads_batch=2)
    llama.set_seed(sampling.seed)
    prompt = llama.tokenize(PROMPT.encode(), special=True)
    tokens = llama.generate(
        prompt,
        temp=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repeat_penalty=1.0,
    )
    theirs = [token for token, _ in zip(tokens, range(48), strict=False)]
    llama_text = b"".join(llama.detokenize([token], prev_tokens=prompt) for token in theirs)
    assert ours == llama_text.decode("utf-8", errors="ignore")
    llama.close()


def test_the_repeat_penalty_counts_the_prompt(shipped: Path) -> None:
    """Against llama.cpp's formula, on the logits after the prompt."""
    penalty = 1.7
    with Session(shipped, n_ctx=64, exact=False) as session:
        ids = session.tokenize(PROMPT)
        logits = session.feed(ids).astype(np.float32)
        expected = logits.copy()
        for token in set(ids):
            expected[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
        chosen = Sampler(session._vocab, Sampling(temperature=0, repeat_penalty=penalty), ids)
        assert chosen.choose(session._context) == expected.argmax()
        plain = Sampler(session._vocab, Sampling(temperature=0), ids)
        assert plain.choose(session._context) == logits.argmax()


def test_min_p_leaves_only_likely_tokens(shipped: Path) -> None:
    with Session(shipped, n_ctx=64, exact=False) as session:
        ids = session.tokenize(PROMPT)
        logits = session.feed(ids).astype(np.float64)
        allowed = set(np.flatnonzero(logits >= logits.max() + np.log(0.05)))
        assert 1 < len(allowed) < 50
        # min-p comes before the temperature, at which every token would otherwise be likely
        found = {
            Sampler(
                session._vocab,
                Sampling(temperature=1000.0, top_k=0, top_p=1.0, min_p=0.05, seed=seed),
                ids,
            ).choose(session._context)
            for seed in range(60)
        }
        assert found <= allowed
        assert len(found) > 1


@pytest.mark.parametrize(
    "values",
    [
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repeat_penalty": 0.0},
        {"repeat_penalty": float("inf")},
        {"seed": -1},
    ],
)
def test_values_out_of_range(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="expected"):
        Sampling(**values)  # type: ignore[arg-type]


def test_text_follows_a_grammar(shipped: Path) -> None:
    grammar = 'root ::= "yes" | "no" | [0-9] [0-9] [0-9]'
    texts = {
        "".join(
            Completion(
                shipped, PROMPT, sampling=Sampling(temperature=2.0, seed=seed, grammar=grammar), max_tokens=9
            )
        )
        for seed in range(8)
    }
    assert all(text in ("yes", "no") or (len(text) == 3 and text.isdigit()) for text in texts)
    assert len(texts) > 1


def test_json_follows_a_schema(shipped: Path) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"enum": ["a", "b"]},
            "count": {"enum": [*range(10)]},
        },
        "required": ["name", "count"],
        "additionalProperties": False,
    }
    grammar = json_schema_grammar(json.dumps(schema))
    for seed in range(3):
        sampling = Sampling(temperature=1.0, seed=seed, grammar=grammar)
        completion = Completion(shipped, PROMPT, sampling=sampling, max_tokens=200)
        found = json.loads("".join(completion))
        assert completion.finish_reason == "stop"
        assert found.keys() == {"name", "count"}
        assert found["name"] in ("a", "b")
        assert 0 <= found["count"] <= 9


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ('root ::= "a', "mistake: unexpected end of input"),
        ("root ::= missing", "mistake: Undefined rule identifier 'missing'"),
        ('other ::= "a"', "mistake: .*root"),
        ('root ::= root "a"', "mistake"),
    ],
)
def test_a_mistake_in_a_grammar(
    vocab: Any, grammar: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=message):
        Sampler(vocab, Sampling(grammar=grammar), [])
    assert capfd.readouterr() == ("", "")  # nothing but the message


NESTED = "root ::= " + 300_000 * "(" + '"a"' + 300_000 * ")"


def chain(rules: int) -> str:
    """A grammar whose rules each begin with the next one."""
    return "root ::= r0\n" + "".join(f"r{n} ::= r{n + 1}\n" for n in range(rules)) + f'r{rules} ::= "a"\n'


# each rule can begin in twice as many ways as the next one
DOUBLING = "root ::= r0\n" + "".join(f"r{n} ::= r{n + 1} r{n + 1} | r{n + 1}?\n" for n in range(30))


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (NESTED, "mistake: it nests more than 1000 levels deep"),
        (chain(30_000), "mistake: it has more than 20000 rules"),
        (chain(19_000), r"the grammar ends llama.cpp \(SIGSEGV\)"),  # on the small stack of the trial
        (DOUBLING + 'r30 ::= "a"?\n', "llama.cpp did not parse the grammar within 5 s"),
        ('root ::= "a"\0', "its character 13 is NUL"),
    ],
    ids=["nested", "many rules", "deep chain", "doubling", "NUL"],
)
def test_a_grammar_that_would_end_the_process(
    vocab: Any, grammar: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitexport.runtime.grammar._MOST_SECONDS", 5)
    with pytest.raises(UsageError, match=message):
        Sampler(vocab, Sampling(grammar=grammar), [])


def test_a_grammar_leaves_the_output_of_the_process_alone(
    vocab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may write to stderr at the same time."""

    def refuse(*_arguments: object) -> None:
        raise AssertionError("a file descriptor was replaced")

    with monkeypatch.context() as patch:
        patch.setattr(os, "dup2", refuse)
        Sampler(vocab, Sampling(grammar='root ::= "new to this process"'), []).close()
        with pytest.raises(UsageError, match="mistake"):
            Sampler(vocab, Sampling(grammar='root ::= "also new'), [])


def test_a_grammar_that_the_vocabulary_cannot_follow(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp would end the process: here the model has no end of text, and the grammar has ended."""
    with Session(shipped, n_ctx=64, exact=False) as session:
        session.feed(session.tokenize(PROMPT))
        sampler = Sampler(session._vocab, Sampling(temperature=0, grammar='root ::= "\\x00\\x01"'), [])
        api = bind().llama_cpp
        real = api.llama_sampler_apply

        def forbid_all(sampler: Any, array: Any) -> None:
            real(sampler, array)
            data = array._obj.data
            for index in range(array._obj.size):
                data[index].logit = float("-inf")

        monkeypatch.setattr(api, "llama_sampler_apply", forbid_all)
        with pytest.raises(BitexportError, match="allows none of the model's tokens"):
            sampler.choose(session._context)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "not JSON"),
        ('{"items": {"type": "integer", "minimum": 0}}', "minimum at schema.items, .*not enforce"),
        ('{"anyOf": [{"type": "string", "format": "email"}]}', r"format 'email' at schema.anyOf\[0\]"),
        ('{"$defs": {"a": {"not": {}}}}', r"not at schema.\$defs.a"),
        ('{"type": "strange"}', "cannot be used"),
        ('{"$ref": "https://localhost/schema.json"}', "cannot be used"),
    ],
)
def test_a_mistake_in_a_schema(schema: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        json_schema_grammar(schema)
