"""What our model class of lm-evaluation-harness refuses, warns of and says about itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from bitexport import load
from bitexport.errors import BitexportWarning, UsageError
from bitexport.evaluation.tasks import register
from bitexport.evaluation.tasks.model import BitexportLM
from bitexport.metrics.logits import log_softmax
from bitexport.runtime.library import bind
from bitexport.runtime.prefix_tree import Query
from tests.support.repository import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TEXT = "def add(left, right):\n    return left + right\n"


@pytest.fixture(scope="module")
def file(gguf_of: Callable[..., Path]) -> Path:
    return gguf_of("packed-multiply")


@pytest.fixture(scope="module")
def model(file: Path) -> Any:
    opened = BitexportLM(str(file), threads=2)
    yield opened
    opened.close()


def ask(*arguments: Any) -> list[Instance]:
    return [Instance("", {}, arguments, 0)]  # type: ignore[arg-type]


def test_each_token_gets_its_own_probability_and_not_its_neighbours(file: Path, model: Any) -> None:
    """Without a begin-of-text token, llama-cpp-python reads an echoed token's probability after the token."""
    ids = model.tok_encode(TEXT, add_special_tokens=False)
    (answer,) = model.session.answer([Query(tuple(ids), 1)])

    no_bos = {"tokenizer.ggml.add_bos_token": False}
    llama = load(file, n_ctx=128, logits_all=True, n_threads=2, kv_overrides=no_bos)
    llama.eval(ids)
    rows = log_softmax(np.asarray(llama.scores[: len(ids)], dtype=np.float64))
    # the cache of llama_cpp.Llama is float16
    right = rows[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose(answer.logprobs, right, atol=2)

    echoed = bind().Llama.create_completion(llama, TEXT, max_tokens=1, echo=True, logprobs=1)
    theirs = np.asarray(echoed["choices"][0]["logprobs"]["token_logprobs"][1 : len(ids)], dtype=np.float64)
    shifted = rows[np.arange(1, len(ids)), ids[1:]]
    np.testing.assert_allclose(theirs, shifted, atol=2)
    assert np.abs(answer.logprobs - theirs).min() > 10
    llama.close()


def test_the_harness_finds_the_class() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points = project["entry-points"]["lm_eval.models"]
    assert EntryPoint("bitexport", points["bitexport"], "lm_eval.models").load() is BitexportLM
    register()
    assert get_model("bitexport") is BitexportLM


def test_a_prompt_without_tokens_of_its_own_is_refused(model: Any) -> None:
    with pytest.raises(UsageError, match="continuation of the request"):
        model.loglikelihood(ask("The fox", ""), disable_tqdm=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_lenght": 10}, "did you mean max_length"),
        ({"max_length": 1}, "expected 2 to 4096"),
        ({"max_length": 10**6}, "expected 2 to 4096"),
    ],
)
def test_wrong_arguments_are_refused(file: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BitexportLM(str(file), **arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_sample": True, "temperature": 0.7}, "do_sample=False"),
        ({"num_beams": 4}, "num_beams"),
        ({"max_gen_toks": 300}, "in all; raise --ctx"),
    ],
)
def test_generation_that_is_not_greedy_is_refused(model: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model.generate_until(ask("The fox", settings), disable_tqdm=True)


def test_a_continuation_longer_than_the_model_is_refused(model: Any) -> None:
    with pytest.raises(UsageError, match="but the model takes 256"):
        model.loglikelihood(ask("The fox", " fox" * 300), disable_tqdm=True)


def test_cut_texts_are_warned_of_once(file: Path) -> None:
    model = BitexportLM(str(file), max_length=8, threads=1)
    with pytest.warns(BitexportWarning, match="1 of 1 requests are longer than the model's 8 tokens"):
        model.loglikelihood(ask(TEXT, " fox"), disable_tqdm=True)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.loglikelihood(ask(TEXT, " fox"), disable_tqdm=True)
    model.close()


def test_the_token_before_a_text_can_be_chosen(file: Path, model: Any) -> None:
    other = BitexportLM(str(file), prefix_token_id=1, add_bos_token=False, threads=1)
    assert other.prefix_token_id == 1
    assert model.prefix_token_id == 0
    assert other.tok_encode("fox") == model.tok_encode("fox")[1:]
    first, second = (each.loglikelihood(ask("", "fox"), disable_tqdm=True)[0][0] for each in (model, other))
    assert first != pytest.approx(second)
    other.close()


def test_what_the_harness_writes_down_about_the_model(model: Any) -> None:
    assert model.tokenizer_name.startswith("bitexport__")
    assert "/" not in model.tokenizer_name
    assert model.get_model_info()["model_num_parameters"] > 100_000
    assert model.chat_template(False) == ""
    assert "message" in model.chat_template(True) or "m in messages" in model.chat_template(True)
