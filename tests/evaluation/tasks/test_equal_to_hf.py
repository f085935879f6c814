"""Our model class of lm-evaluation-harness answers what its ``hf`` backend answers on the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from lm_eval.api.instance import Instance

from tests.evaluation.tasks.conftest import TASKS, Both

#: Float sums in another order move a few activations to the next of their 8-bit steps, in a random model that
#: is far from sure of anything: a token costs it some 20 nats. The hf backend differs from itself as much if
#: its batch size changes. A shift by one token would change everything.
TYPICAL, LARGEST = 2e-4, 1e-2

TOKENIZERS = ("gpt2", "llama2", "qwen2")

EXAMPLES = "Question: What is 1 + 1?\nAnswer: two\n\nQuestion: It's 1234 o'clock, isn't it?\nAnswer: no\n\n"

PAIRS = [
    *(
        (f"{EXAMPLES}Question: Which{end}\nAnswer:", f" {choice}")
        for end in (" one?", "?")
        for choice in "ABCD"
    ),
    ("def add(left, right):\n    return", " left + right"),
    ("def add(left, right):\n    return ", "left + right"),  # the space moves into the continuation
    ("The quick brown fox", " jumps over the lazy dog."),
    ("The quick brown fox", " jumps"),
    ("The quick brown fox", "es"),
    ("", "The quick brown fox"),
    ("", " for"),
    ("", "<|begin_of_text|>The fox"),
    ("<|begin_of_text|>The quick", " brown fox"),
    ("<s>The quick", " brown fox"),
    ("print('x')<|end_of_text|>", " print"),
    ("敏捷的棕色", "狐狸 いろは"),
    ("👩‍👩‍👧‍👦 and", " 👦"),
    ("item " * 300, " items"),
    ("item " * 20, " items" * 30),
]


def check_equal(found: list[float], expected: list[float]) -> None:
    differences = np.abs(np.subtract(found, expected)) / np.abs(expected)
    assert np.median(differences) < TYPICAL, differences
    assert differences.max() < LARGEST, differences


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [{}, {"max_length": 48}], ids=["whole", "cut"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.filterwarnings("ignore:.*lose their beginning", "ignore:texts without context")
def test_loglikelihood(both_of: Callable[..., Both], tokenizer: str, arguments: dict[str, Any]) -> None:
    both = both_of(tokenizer, **arguments)
    order = np.random.default_rng(0).permutation(len(PAIRS))
    pairs = [PAIRS[at] for at in order]
    pairs = [pair for pair in pairs if len(both.hf.tok_encode(pair[1])) < both.hf.max_length]
    expected = both.hf.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    found = both.ours.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    check_equal([logprob for logprob, _ in found], [logprob for logprob, _ in expected])
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_what_the_model_would_say_is_greedy(both_of: Callable[..., Both], tokenizer: str) -> None:
    """Random continuations are almost never greedy, so the other side of ``is_greedy`` needs its own."""
    both = both_of(tokenizer)
    queries = []
    for context in ("def add(", "The quick brown", EXAMPLES):
        ids = both.ours.tok_encode(context)
        (answer,) = both.ours.session.continue_greedily([ids], 4, lambda _: False)
        queries += [(None, ids, answer), (None, ids, [*answer[:-1], (answer[-1] + 1) % 400])]
    expected = both.hf._loglikelihood_tokens(
        [((str(index), ""), ids, answer) for index, (_, ids, answer) in enumerate(queries)], disable_tqdm=True
    )
    found = both.ours._loglikelihood_tokens(queries, disable_tqdm=True)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [greedy for _, greedy in found] == [True, False] * 3


@pytest.mark.parametrize("arguments", [{}, {"max_length": 48}], ids=["whole", "cut"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.filterwarnings("ignore:texts without context")
def test_rolling(both_of: Callable[..., Both], tokenizer: str, arguments: dict[str, Any]) -> None:
    both = both_of(tokenizer, **arguments)
    texts = [
        ("The quick brown fox jumps over the lazy dog.",),
        ("for index in range(10):\n    print(index, 'items')\n" * 12,),
        ("x",),
        ("<|begin_of_text|>def add(left, right):",),
    ]
    expected = both.hf.loglikelihood_rolling(instances("loglikelihood_rolling", texts), disable_tqdm=True)
    found = both.ours.loglikelihood_rolling(instances("loglikelihood_rolling", texts), disable_tqdm=True)
    check_equal(found, expected)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.filterwarnings("ignore:.*lose their beginning")
def test_generation(both_of: Callable[..., Both], tokenizer: str) -> None:
    both = both_of(tokenizer, max_length=96)
    settings = [
        {"until": ["\n"], "max_gen_toks": 12},
        {"until": "e", "max_gen_toks": 12, "do_sample": False},
        {"until": ["ab", "<|end_of_text|>"], "max_gen_toks": 20, "temperature": 0.0},
        {"max_gen_toks": 5},
    ]
    prompts = ["def add(left, right):", "The quick", EXAMPLES * 3, "x = [1, 2", "<|begin_of_text|>for"]
    asked = [(prompt, setting) for setting in settings for prompt in prompts]
    expected = both.hf.generate_until(instances("generate_until", asked), disable_tqdm=True)
    found = both.ours.generate_until(instances("generate_until", asked), disable_tqdm=True)
    assert found == expected


@pytest.mark.parametrize(("tokenizer", "shots"), [("gpt2", 0), ("llama2", 3)])
@pytest.mark.filterwarnings("ignore:texts without context", "ignore:.*lose their beginning")
def test_whole_tasks(both_of: Callable[..., Both], tokenizer: str, shots: int) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    both = both_of(tokenizer)
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    expected, found = (
        simple_evaluate(
            model,
            tasks=["local"],
            num_fewshot=shots,
            bootstrap_iters=0,
            task_manager=manager,
        )
        for model in (both.hf, both.ours)
    )
    assert set(found["results"]) == {
        f"local_{name}" for name in ("facts", "endings", "last_word", "prose", "answers")
    }
    for task, metrics in expected["results"].items():
        for name, value in metrics.items():
            if isinstance(value, float):
                other = found["results"][task][name]
                if "perplexity" in name:  # its logarithm is what is compared above
                    value, other = np.log(value), np.log(other)
                assert other == pytest.approx(value, rel=LARGEST), (task, name)
        for sample, same in zip(expected["samples"][task], found["samples"][task], strict=True):
            assert same["arguments"] == sample["arguments"]
