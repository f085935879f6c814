"""With drafts, a text is what it is without them: on trained models, at every temperature."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitexport.convert import convert
from bitexport.runtime.drafts import Passes
from bitexport.runtime.drafts.lookup import LookupDrafts
from bitexport.runtime.drafts.model import ModelDrafts
from bitexport.runtime.drafts.pace import Pace
from bitexport.runtime.generation import Generation
from bitexport.runtime.library import bind
from bitexport.runtime.loading import load
from bitexport.runtime.sampling import Sampler, Sampling
from bitexport.text.stdlib import source_files, standard_library, text_of
from tests.support.repository import EN_FR, TINY_PYTHON

GREEDY = Sampling(temperature=0)
CONTEXT = 512


class Eager(Pace):
    """Takes every draft: what drafts do must not depend on when they pay."""

    ready = True

    def __init__(self) -> None:
        super().__init__([0.5] * 8)

    def worth(self, trusts: Any) -> int:
        return len(trusts)

    def worth_drafting(self, trusts: Any) -> bool:
        return len(trusts) < 5


class Planted:
    """Drafts that know the text, and are wrong from a place that is drawn for each pass."""

    name = "planted"

    def __init__(self, text: list[int], seed: int) -> None:
        self.pace = Eager()
        self._text = text
        self._draw = np.random.default_rng(seed)
        self._at = 0

    def begin(self, ids: Any) -> None:  # noqa: ARG002
        self._at = 0

    def follow(self, token: int) -> None:  # noqa: ARG002
        self._at += 1

    def propose(self, most: int, sampler: Sampler) -> tuple[list[int], list[int]]:  # noqa: ARG002
        size = min(most, int(self._draw.integers(0, 12)))
        right = int(self._draw.integers(0, size + 1))
        known = self._text[self._at : self._at + right]
        wrong = self._draw.integers(3, 400, size - len(known)).tolist()
        return [*known, *wrong], [0] * size

    def close(self) -> None:
        pass


def open_model(file: Path) -> Any:
    return load(file, n_ctx=CONTEXT, n_threads=2, n_threads_batch=2)


@pytest.fixture(scope="module")
def python_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    file = tmp_path_factory.mktemp("drafts") / "tiny-python.gguf"
    convert(TINY_PYTHON, file)
    model = open_model(file)
    yield model
    model.close()


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    file = tmp_path_factory.mktemp("drafts") / "en-fr.gguf"
    convert(EN_FR, file)
    model = open_model(file)
    yield model
    model.close()


def written(model: Any, prompt: str | list[int], drafts: Any = None, **options: Any) -> Generation:
    ids = model.tokenize(prompt.encode(), special=True) if isinstance(prompt, str) else prompt
    options = {"sampling": GREEDY, "max_tokens": 32, **options}
    model.reset()
    generation = Generation(model, ids, drafts=drafts, **options)
    list(generation)
    return generation


def assert_same(one: Generation, other: Generation) -> None:
    assert (other.ids, other.text, other.finish_reason) == (one.ids, one.text, one.finish_reason)
    assert other.drafts.exact is not False


def python_prompts(count: int) -> list[str]:
    """Beginnings of modules of the standard library."""
    texts = (text_of(file) for file in source_files(standard_library()))
    long = itertools.islice((text for text in texts if len(text) > 400), count)
    return [text[: 60 + 7 * number % 300] for number, text in enumerate(long)]


SENTENCES = [
    f"{subject} {verb} {thing}."
    for subject in ("The file", "This option", "A new window", "The user", "No folder")
    for verb in ("opens", "shows", "deletes", "cannot find", "renames")
    for thing in ("the other files", "all messages", "a picture", "the password")
]


def test_on_two_hundred_prompts_of_trained_models(python_model: Any, translator: Any) -> None:
    """As many drafts as possible: the pace would leave out most of them."""
    accepted = 0
    prompts = [(python_model, text) for text in python_prompts(100)]
    prompts += [(translator, text) for text in SENTENCES]
    assert len(prompts) == 200
    for number, (model, prompt) in enumerate(prompts):
        plain = written(model, prompt, max_tokens=24)
        drafts = LookupDrafts()
        drafts.pace = Eager()
        found = written(model, prompt, drafts, max_tokens=24)
        assert_same(plain, found)
        assert_same(plain, written(model, prompt, Planted(plain.ids, number), max_tokens=24))
        accepted += found.drafts.accepted
    assert accepted > 200, "drafts were hardly ever right: nothing was tested"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.8},
        {"temperature": 2.0, "top_k": 0, "top_p": 1.0},
        {"temperature": 1.0, "repeat_penalty": 1.3, "min_p": 0.05},
        {"temperature": 0.0, "repeat_penalty": 1.5},
        {"temperature": 1.0, "grammar": 'root ::= ("yes é " | "no " [0-9]+ " ")+'},
    ],
    ids=str,
)
def test_sampled_text_is_the_same(python_model: Any, options: dict[str, Any], seed: int) -> None:
    """Same seed, same text: penalties, grammar and random numbers are those of decoding one by one."""
    sampling = Sampling(seed=seed, **options)
    prompt = "def add(left, right):\n    return left + right\n\n\ndef add(left"
    plain = written(python_model, prompt, sampling=sampling, max_tokens=60)
    for drafts in (
        LookupDrafts(),
        Planted(plain.ids, seed),
        ModelDrafts(python_model_copy(python_model), "m"),
    ):
        drafts.pace = Eager()
        found = written(python_model, prompt, drafts, sampling=sampling, max_tokens=60)
        assert_same(plain, found)
        if isinstance(drafts, ModelDrafts):
            # the same model, with the same random numbers, drafts what will be chosen
            assert found.drafts.accepted == found.drafts.drafted > 40
            drafts.close()


def python_model_copy(model: Any) -> Any:
    return open_model(Path(model.model_path))


def test_stop_texts_and_ends_inside_a_draft(python_model: Any) -> None:
    prompt = python_prompts(1)[0]
    plain = written(python_model, prompt, max_tokens=40)
    for begin in range(4, 30, 3):
        stop = [plain.text[begin : begin + 3]]
        cut = written(python_model, prompt, stop=stop, max_tokens=40)
        assert_same(cut, written(python_model, prompt, Planted(plain.ids, begin), stop=stop, max_tokens=40))
        ends = [plain.ids[begin // 2]]
        ended = written(python_model, prompt, ends=ends, max_tokens=40)
        assert ended.finish_reason == "stop"
        assert_same(ended, written(python_model, prompt, Planted(plain.ids, begin), ends=ends, max_tokens=40))


@pytest.mark.parametrize("most", [*range(1, 14), 31])
def test_limits_inside_a_draft(python_model: Any, most: int) -> None:
    """The number of tokens asked for, and of a draft."""
    prompt = python_prompts(2)[1]
    plain = written(python_model, prompt, max_tokens=most)
    planted = Planted(plain.ids, most)
    assert_same(plain, written(python_model, prompt, planted, max_tokens=most, draft_tokens=most))


def test_the_end_of_the_context(python_model: Any) -> None:
    ids = python_model.tokenize("\n".join(python_prompts(30)).encode())[: CONTEXT - 20]
    plain = written(python_model, ids, max_tokens=20)
    assert len(plain.ids) == 20
    for seed in range(6):
        assert_same(plain, written(python_model, ids, Planted(plain.ids, seed), max_tokens=20))


def test_bytes_of_characters(python_model: Any) -> None:
    hot = Sampling(temperature=50.0, top_k=0, top_p=1.0, seed=4)
    plain = written(python_model, "é☃", sampling=hot, max_tokens=120)
    found = written(python_model, "é☃", Planted(plain.ids, 1), sampling=hot, max_tokens=120)
    assert_same(plain, found)


def test_probabilities_are_the_same(python_model: Any) -> None:
    prompt = python_prompts(3)[2]
    plain = written(python_model, prompt, alternatives=3)
    found = written(python_model, prompt, Planted(plain.ids, 3), alternatives=3)
    assert found.probabilities == plain.probabilities


def test_what_was_wrong_leaves_nothing_in_the_cache(python_model: Any) -> None:
    """Logits after drafts, right and wrong ones, against those of a fresh evaluation, bit for bit."""
    ids = python_model.tokenize("\n".join(python_prompts(40)).encode())[:300]
    assert len(ids) == 300
    api = bind().llama_cpp

    def logits() -> bytes:
        pointer = api.llama_get_logits_ith(python_model.ctx, -1)
        return np.ctypeslib.as_array(pointer, shape=(python_model.n_vocab(),)).tobytes()

    python_model.reset()
    python_model.eval(ids[:100])
    one_by_one = []
    for token in ids[100:]:
        python_model.eval([token])
        one_by_one.append(logits())
    python_model.reset()
    python_model.eval(ids[:100])
    passes = Passes(python_model, Planted(ids[101:], 7), 31)
    passes.statistics.passes = 1
    passes.statistics.exact = True
    passes._following = [ids[100]]
    sampler = Sampler(python_model._model.vocab, GREEDY, [])
    at = 100
    while at < 260:
        passes.evaluate(sampler, 31)
        while passes.take(ids[at + 1]):
            at += 1
        at += 1
    python_model.eval([ids[at]])
    assert logits() == one_by_one[at - 100]
    assert passes.statistics.accepted > 50
    assert passes.statistics.drafted > passes.statistics.accepted + 50
