"""Templates, and labels that cover only the answer and its end token."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from bitexport.errors import UsageError
from bitexport.text.sources import Chat, Document, Pair
from bitexport.text.templates import (
    LANGUAGE_NAMES,
    Encoded,
    Template,
    encode_record,
    render,
    special_tokens_of,
)
from bitexport.train.data.bpe import END_OF_TEXT, train_tokenizer
from tests.support.template_bombs import BROKEN, MEMORY

PAIR = Pair("Open {0} files", "Ouvrir {0} fichiers")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    found = train_tokenizer(["Open files. Ouvrir fichiers."], vocab_size=280, max_length=64)
    found.add_special_tokens({"additional_special_tokens": ["<|en|>", "<|fr|>", "<|user|>", "<|assistant|>"]})
    found.chat_template = CHAT_TEMPLATE
    return found


def user(text: str) -> tuple[str, str]:
    return f"<|user|>{text}\n<|assistant|>", PAIR.target


def test_plain_has_no_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    template = Template("plain")
    assert render(Document("def f():\n"), template) == ("", "def f():\n")
    assert render(PAIR, template) == ("", "Open {0} files\nOuvrir {0} fichiers")
    assert render(Chat((("user", "a"), ("assistant", "b"))), template) == ("", "a\nb")
    found = encode_record(Document("Open files"), tokenizer, template, 64)
    assert found is not None
    assert found.labels == found.input_ids
    assert tokenizer.decode(found.input_ids) == f"Open files{END_OF_TEXT}"


def test_tags_come_before_source_and_target() -> None:
    template = Template("tags", source_language="en", target_language="pt_BR")
    assert render(PAIR, template) == ("<|en|>Open {0} files<|pt_BR|>", "Ouvrir {0} fichiers")
    assert special_tokens_of(template) == ["<|en|>", "<|pt_BR|>"]
    assert special_tokens_of(Template("plain")) == []


@pytest.mark.parametrize(
    ("instruction", "asked"),
    [
        ("", "Open {0} files"),
        ("Translate to French.", "Translate to French.\n\nOpen {0} files"),
        ("French of '{source}'? {now}", "French of 'Open {0} files'? {now}"),
    ],
)
def test_chat_wraps_instruction_and_source(
    tokenizer: PreTrainedTokenizerFast, instruction: str, asked: str
) -> None:
    assert render(PAIR, Template("chat", instruction=instruction), tokenizer) == user(asked)


def test_chat_of_several_turns_ends_with_the_last_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = (("system", "S"), ("user", "A"), ("assistant", "B"), ("user", "C"), ("assistant", " D "))
    prompt, answer = render(Chat(messages), Template("chat"), tokenizer)
    assert prompt == f"<|system|>S\n<|user|>A\n<|assistant|>B{END_OF_TEXT}\n<|user|>C\n<|assistant|>"
    assert answer == " D "


def test_hy_mt_prompts_are_as_documented(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Translate the following segment into French, without additional explanation.\n\nOpen {0} files"
    assert render(PAIR, Template("hy-mt1.5", "en", "fr"), tokenizer) == user(text)
    to_chinese = "将以下文本翻译为中文，注意只需要输出翻译后的结果，不要额外解释：\n\nOpen {0} files"
    assert render(PAIR, Template("hy-mt1.5", "en", "zh"), tokenizer) == user(to_chinese)
    from_chinese = "将以下文本翻译为法语，注意只需要输出翻译后的结果，不要额外解释：\n\nOpen {0} files"
    assert render(PAIR, Template("hy-mt1.5", "zh-Hant", "fr"), tokenizer) == user(from_chinese)


def test_hy_mt_languages_have_full_names() -> None:
    assert len(LANGUAGE_NAMES) == 38  # 33 languages and 5 ethnic languages and dialects
    assert LANGUAGE_NAMES["zh-Hant"] == ("Traditional Chinese", "繁体中文")
    assert LANGUAGE_NAMES["de"] == ("German", "德语")
    with pytest.raises(UsageError, match=r"template hy-mt1\.5: language 'sv'; expected one of zh, en, fr"):
        Template("hy-mt1.5", "en", "sv")


@pytest.mark.parametrize("name", ["tags", "chat", "hy-mt1.5"])
def test_labels_cover_exactly_answer_and_end(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    template = Template(name)
    prompt, answer = render(PAIR, template, tokenizer)
    found = encode_record(PAIR, tokenizer, template, 512)
    assert found is not None
    assert tokenizer.decode(found.input_ids) == prompt + answer + END_OF_TEXT
    alone = tokenizer.encode(prompt, add_special_tokens=False)  # what inference starts from
    assert found.input_ids[: len(alone)] == alone
    assert found.labels[: len(alone)] == [-100] * len(alone)
    assert found.labels[len(alone) :] == found.input_ids[len(alone) :]
    assert tokenizer.decode(found.labels[len(alone) :]) == answer + END_OF_TEXT


def test_a_record_that_is_too_long_is_dropped_not_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    template = Template("tags")
    found = encode_record(PAIR, tokenizer, template, 512)
    assert isinstance(found, Encoded)
    length = len(found.input_ids)
    assert encode_record(PAIR, tokenizer, template, length) == found
    assert encode_record(PAIR, tokenizer, template, length - 1) is None


def test_no_start_token_is_put_in_front(tokenizer: PreTrainedTokenizerFast) -> None:
    class AddsSpecial:
        """A tokenizer that adds its start token whenever it may."""

        eos_token_id, unk_token_id, convert_tokens_to_ids = 0, None, tokenizer.convert_tokens_to_ids

        def __call__(
            self, text: str, add_special_tokens: bool = True, **options: Any
        ) -> dict[str, list[int]]:
            ids = tokenizer(text, add_special_tokens=False, **options)["input_ids"]
            return {"input_ids": [9, *ids] if add_special_tokens else ids}

    assert encode_record(PAIR, AddsSpecial(), Template("tags"), 512) == encode_record(
        PAIR, tokenizer, Template("tags"), 512
    )


def test_a_kind_of_record_that_the_template_does_not_take(tokenizer: PreTrainedTokenizerFast) -> None:
    document, chat = Document("a"), Chat((("user", "a"), ("assistant", "b")))
    for name, record, expected in (
        ("tags", document, "template tags: a document in the data; expected a pair"),
        ("tags", chat, "template tags: a chat in the data; expected a pair"),
        ("chat", document, "template chat: a document in the data; expected a pair or chat"),
        ("hy-mt1.5", chat, "template hy-mt1.5: a chat in the data"),
    ):
        with pytest.raises(UsageError, match=expected):
            render(record, Template(name), tokenizer)


def test_a_tokenizer_that_lacks_something(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UsageError, match=r"no token <\|sv\|>; template tags expects it"):
        encode_record(PAIR, tokenizer, Template("tags", "en", "sv"), 64)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}{% endfor %}"
    with pytest.raises(UsageError, match="its chat template leaves out the answer"):
        render(PAIR, Template("chat"), tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(UsageError, match="no chat template"):
        render(PAIR, Template("chat"), tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(UsageError, match="no end token"):
        encode_record(PAIR, tokenizer, Template("plain"), 64)


@pytest.mark.parametrize(
    ("chat_template", "message"),
    [
        (MEMORY["text"], "its chat template needs more than 1024 MiB of memory; correct it"),
        (BROKEN["is damaged"][0], "its chat template is damaged"),
        ("{{ raise_exception('No!') }}", r"does not render a conversation of user, assistant \(No!\)"),
    ],
)
def test_a_chat_template_that_cannot_be_used(
    tokenizer: PreTrainedTokenizerFast, chat_template: str, message: str
) -> None:
    tokenizer.chat_template = chat_template
    with pytest.raises(UsageError, match=message):
        render(PAIR, Template("chat"), tokenizer)


def test_rendered_as_transformers_renders(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]
    everything = "{{ bos_token }}{{ eos_token }}{{ additional_special_tokens }}{{ tools }}{{ documents }}"
    tokenizer.chat_template = (
        everything + "{{ add_generation_prompt }}{{ messages[0] }}{{ messages[1].content }}"
    )
    prompt, _ = render(Chat((("user", "A"), ("assistant", "B"))), Template("chat"), tokenizer)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert prompt + "B" == whole
    tokenizer.chat_template = {"default": CHAT_TEMPLATE, "other": "{{ 1 }}"}
    assert render(PAIR, Template("chat"), tokenizer) == user("Open {0} files")


def test_unknown_template_suggests_the_near_one() -> None:
    with pytest.raises(
        UsageError, match=r"template 'hy-mt15'; expected one of plain, .*did you mean hy-mt1\.5\?"
    ):
        Template("hy-mt15")
