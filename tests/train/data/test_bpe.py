from __future__ import annotations

from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from bitexport.train.data.bpe import END_OF_TEXT, train_tokenizer

TEXTS = [f"def add_{i}(first, second):\n    return first + second * {i}\n" for i in range(300)]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, 320, 64)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    assert tokenizer().decode(tokenizer().encode(text)) == text


def test_training_is_deterministic() -> None:
    again = train_tokenizer(TEXTS, 320, 64)
    assert again.backend_tokenizer.to_str() == tokenizer().backend_tokenizer.to_str()


def test_words_are_split_as_gpt2_splits_them() -> None:
    """By hand: contractions; runs of letters, digits or others with one space before; runs of white space."""
    text = "I'll  say x123 !!\n\n    self.x='ä'  "
    words = ["I", "'ll", " ", " say", " x", "123", " !!", "\n\n   ", " self", ".", "x", "='", "ä", "'", "  "]
    spans = tokenizer().backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in spans] == words


def test_special_tokens_are_one_token_each() -> None:
    assert len(tokenizer()) == 320
    assert tokenizer().convert_tokens_to_ids(END_OF_TEXT) == tokenizer().eos_token_id == 0
    tags = train_tokenizer(TEXTS, 320, 64, ["<|en|>", "<|fr|>"])
    assert tags.encode("<|en|>x<|fr|>")[::2] == [1, 2]
    assert len(tags) == 320


def test_nothing_is_added_to_a_prompt() -> None:
    assert 0 not in tokenizer().encode("def f")
