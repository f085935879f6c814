"""Reading pairs, and turning text and pairs into tokens."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from bitexport.errors import UsageError
from bitexport.evaluation import PromptAnswer, read_pairs
from bitexport.evaluation.items import Item, pair_items, text_items
from tests.evaluation.conftest import PAIRS

Write = Callable[..., Path]


def encode(text: str, special: bool) -> list[int]:
    """One token per letter, after token 1 if special tokens are requested."""
    return [1] * special + [ord(letter) for letter in text]


def test_reads_pairs(write_pairs: Write) -> None:
    found = read_pairs(write_pairs())
    assert [(p.prompt, p.answer, p.source) for p in found] == [(p.prompt, p.answer, p.source) for p in PAIRS]
    assert [pair.line for pair in found] == [1, 2, 3, 4, 5]


def test_blank_lines_and_limit(write_pairs: Write) -> None:
    path = write_pairs({"prompt": "a", "answer": "b"}, "", '{"prompt": "c\u2028", "answer": "d"}', "no JSON")
    assert read_pairs(path, 2) == [PromptAnswer("a", "b", None, 1), PromptAnswer("c\u2028", "d", None, 3)]
    with pytest.raises(UsageError, match="line 4: not JSON"):
        read_pairs(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ('["a", "b"]', "line 2: list; expected"),
        ({"prompt": "a"}, "line 2: no 'answer'; expected non-empty text"),
        ({"prompt": "", "answer": "b"}, "line 2: prompt is ''; expected non-empty text"),
        ({"prompt": "a", "answer": 3}, "line 2: answer is 3; expected non-empty text"),
        ({"prompt": "a", "answer": "b", "source": 3}, "line 2: source is 3; expected text"),
    ],
)
def test_bad_lines_are_named(write_pairs: Write, line: object, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        read_pairs(write_pairs({"prompt": "a", "answer": "b"}, line))


def test_empty_or_missing_file(write_pairs: Write, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no pairs; write"):
        read_pairs(write_pairs(""))
    with pytest.raises(UsageError, match="No such file"):
        read_pairs(tmp_path / "none.jsonl")


def test_only_the_answer_and_its_end_are_predicted() -> None:
    (item,) = pair_items([PromptAnswer("ab", "c")], encode, end=9, context=5)
    assert item == Item([1, ord("a"), ord("b"), ord("c"), 9], first=3)


@pytest.mark.parametrize(("prompt", "what"), [("abcde", "the prompt has 6"), ("abc", "answer have 7")])
def test_too_long_for_the_context(prompt: str, what: str) -> None:
    pairs = [PromptAnswer("a", "b", None, 1), PromptAnswer(prompt, "de", None, 7)]
    with pytest.raises(UsageError, match=f"line 7: .*{what} tokens, but the model's context is 6"):
        pair_items(pairs, encode, end=9, context=6)


def test_text_in_windows() -> None:
    items = text_items("abcdef", encode, context=3)
    assert [item.ids for item in items] == [
        [1, 97, 98],
        [99, 100, 101],
    ]  # a single last token predicts nothing
    assert {item.first for item in items} == {1}
    assert len(text_items("abcdef", encode, context=3, limit=1)) == 1
