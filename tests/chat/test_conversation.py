"""Conversations: the template, what is evaluated, where answers end, and what is taken back."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from bitexport.chat import ChatTemplate, Conversation, Message
from bitexport.errors import GGUFError, OutputError, UsageError
from bitexport.runtime.sampling import Sampling
from tests.chat.conftest import TEMPLATE, ChatModel
from tests.support.embedding_models import embedding_checkpoint
from tests.support.template_bombs import BROKEN, MEMORY, TIME

GREEDY = Sampling(temperature=0)
HOT = Sampling(temperature=300.0, top_k=0, top_p=1.0, seed=5)
CONVERSATION = [Message("system", "Be brief."), Message("user", "Hello"), Message("assistant", "Hi")]


def evaluated_tokens(conversation: Conversation, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens of each evaluation from now on; the list grows."""
    counts: list[int] = []
    real = conversation._llama.eval

    def count(tokens: list[int]) -> None:
        counts.append(len(tokens))
        real(tokens)

    monkeypatch.setattr(conversation._llama, "eval", count)
    return counts


def test_the_template_writes_the_conversation() -> None:
    template = ChatTemplate(TEMPLATE, "<s>", "</s>")
    assert template.render(CONVERSATION) == (
        "<s><|pad|>system\nBe brief.<|end_of_text|>\n<|pad|>user\nHello<|end_of_text|>\n"
        "<|pad|>assistant\nHi<|end_of_text|>\n<|pad|>assistant\n"
    )
    assert template.render(CONVERSATION, answer_next=False).endswith("Hi<|end_of_text|>\n")
    assert template.after_answer() == "<|end_of_text|>\n<|pad|>user\n"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('no system role here') }}", "no system role here"),
        ("{% for m in messages %}{{ m.content + 1 }}{% endfor %}", "does not take this conversation"),
        (
            "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
            "leaves out the system message",
        ),
    ],
)
def test_a_template_that_does_not_take_the_conversation(source: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ChatTemplate(source).render(CONVERSATION)
    assert ChatTemplate("{{ raise_exception('no') }}").after_answer() == ""


UNUSABLE = [
    (MEMORY["text"], "needs more than 1024 MiB of memory"),
    (MEMORY["doubled"], "needs more than 1024 MiB of memory"),
    (TIME["power"], "takes more than 5 s"),
    *((templates[-1], problem) for problem, templates in BROKEN.items()),
]


@pytest.mark.parametrize(("source", "problem"), UNUSABLE)
def test_an_unusable_template(source: str, problem: str) -> None:
    with pytest.raises(GGUFError, match=f"m.gguf: its chat template .*{problem}.* chat m.gguf --no-template"):
        ChatTemplate(source, path="m.gguf").render(CONVERSATION)


def test_only_new_tokens_are_evaluated(chat_model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the answer's text has another tokenization than what the model chose."""
    with Conversation(chat_model(), sampling=GREEDY, max_tokens=6, system="Be brief.") as conversation:
        letters = [conversation._tokenize(letter)[0] for letter in "return"]
        assert conversation._tokenize("return") != letters
        counts = evaluated_tokens(conversation, monkeypatch)
        first = conversation.say("Hello there")
        with monkeypatch.context() as patch:
            chosen = iter(letters)
            patch.setattr("bitexport.runtime.sampling.Sampler.choose", lambda *_: next(chosen))
            assert "".join(first) == "return"
        known = first.prompt_tokens + 5  # the last token has been chosen, but not evaluated
        counts.clear()
        second = conversation.say("and now?")
        list(second)
        assert second.statistics["reused_tokens"] == known
        assert counts[0] == second.prompt_tokens - known
        assert set(counts[1:]) <= {1}
        # the beginning of the prompt is shared with the turn before, and nothing else is evaluated again
        third = conversation.regenerate()
        list(third)
        assert third.statistics["reused_tokens"] == third.prompt_tokens - 1


@pytest.mark.parametrize("template", [True, False])
def test_the_answer_is_that_of_a_fresh_model(chat_model: ChatModel, template: bool) -> None:
    path = chat_model()
    with Conversation(path, sampling=GREEDY, max_tokens=10, template=template) as conversation:
        list(conversation.say("def add(left, right):"))
        answer = conversation.say("class Stack:")
        list(answer)
        messages = conversation.messages
    with Conversation(path, sampling=GREEDY, max_tokens=10, template=template) as fresh:
        fresh.messages = messages[:2]
        again = fresh.say("class Stack:")
        list(again)
        assert again.statistics["reused_tokens"] == 0
        assert again.text == answer.text


def test_the_beginning_of_text_comes_once(chat_model: ChatModel) -> None:
    """With a template that writes it, with one that does not, and without a template."""
    for source, template in (
        (TEMPLATE, True),
        (TEMPLATE.replace("{{ bos_token }}", ""), True),
        (TEMPLATE, False),
    ):
        with Conversation(chat_model(source), template=template, sampling=GREEDY, max_tokens=1) as found:
            begin = found._api.llama_vocab_bos(found._vocab)
            list(found.say("Hello"))
            ids = found._llama.input_ids[: found._llama.n_tokens].tolist()
            assert ids[0] == begin
            assert ids.count(begin) == 1


@pytest.mark.parametrize(
    ("source", "tokens", "texts"),
    [
        # the first control token after an answer
        (TEMPLATE.replace("<|end_of_text|>", "<|pad|>"), ["<|pad|>"], []),
        # no control token: the text in front of the next message
        (
            "{% for m in messages %}\n\n### {{ m['role'] }}:\n{{ m['content'] }}{% endfor %}",
            [],
            ["\n### user:", "### user:"],  # jinja2 drops a line feed behind a tag
        ),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", [], []),
    ],
)
def test_what_ends_an_answer(chat_model: ChatModel, source: str, tokens: list[str], texts: list[str]) -> None:
    with Conversation(chat_model(source)) as conversation:
        assert [conversation._tokenize(token)[0] for token in tokens] == conversation._end_tokens
        assert list(conversation._stop) == texts


def test_an_end_token_of_the_template_ends_the_answer(
    chat_model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Conversation(chat_model(TEMPLATE.replace("<|end_of_text|>", "<|pad|>")), sampling=GREEDY) as found:
        (end,) = found._end_tokens
        assert not found._api.llama_vocab_is_eog(found._vocab, end)
        chosen = iter([*found._tokenize("Hi"), end])
        monkeypatch.setattr("bitexport.runtime.sampling.Sampler.choose", lambda *_: next(chosen))
        answer = found.say("Hello")
        assert "".join(answer) == "Hi"
        assert answer.finish_reason == "stop"


def test_regenerating_takes_another_seed(chat_model: ChatModel) -> None:
    with Conversation(chat_model(), sampling=HOT, max_tokens=12) as conversation:
        texts = ["".join(conversation.say("Hello")), *("".join(conversation.regenerate()) for _ in range(2))]
        assert len(set(texts)) == 3
        assert [message.content for message in conversation.messages] == ["Hello", texts[-1]]
        conversation.clear()
        assert "".join(conversation.say("Hello")) == texts[0]
        conversation.clear()
        with pytest.raises(UsageError, match="no answer to replace"):
            conversation.regenerate()


def test_an_answer_that_is_left_is_kept(chat_model: ChatModel) -> None:
    with Conversation(chat_model(), sampling=HOT, max_tokens=50) as conversation:
        answer = conversation.say("Hello")
        with closing(iter(answer)) as pieces:
            first = next(pieces)
        assert [message.content for message in conversation.messages] == ["Hello", first]
        assert answer.finish_reason is None
        list(conversation.say("go on"))  # and it goes on


def test_interrupting_before_the_answer_takes_the_message_back(
    chat_model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Conversation(chat_model(), sampling=HOT, max_tokens=5) as conversation:
        list(conversation.say("Hello"))
        before = conversation.messages
        conversation.say("never asked, as nobody iterates over the answer")
        assert conversation.messages == before

        def interrupted(_tokens: list[int]) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(conversation._llama, "eval", interrupted)
            for ask in (lambda: conversation.say("more"), conversation.regenerate):
                with pytest.raises(KeyboardInterrupt):
                    list(ask())
                assert conversation.messages == before
        list(conversation.say("more"))


def test_a_message_that_does_not_fit_is_taken_back(chat_model: ChatModel) -> None:
    with Conversation(chat_model(), sampling=HOT, n_ctx=256) as conversation:
        answer = conversation.say("Hello")
        list(answer)  # up to the end of the context, if no end of text comes before
        assert answer.prompt_tokens + answer.statistics["tokens"] <= 256
        before = conversation.messages
        with pytest.raises(UsageError, match=r"would have \d+ tokens, and the context has 256; .*/clear"):
            conversation.say("word " * 300)
        assert conversation.messages == before
        conversation.clear()
        list(conversation.say("Hello"))


def test_saving(chat_model: ChatModel, tmp_path: Path) -> None:
    with Conversation(chat_model(), system="Be brief.", sampling=HOT, max_tokens=4) as conversation:
        text = "".join(conversation.say("naïve ☃"))
        conversation.save(tmp_path / "chat.json")
        saved = json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))
        assert saved["schema"] == 1
        assert saved["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "naïve ☃"},
            {"role": "assistant", "content": text},
        ]
        with pytest.raises(OutputError, match="exists"):
            conversation.save(tmp_path / "chat.json")


def test_what_is_refused(chat_model: ChatModel) -> None:
    with pytest.raises(UsageError, match=r"no chat template.*bitexport run .*--no-template"):
        Conversation(chat_model(None))
    with pytest.raises(UsageError, match="max tokens is -1"):
        Conversation(chat_model(), max_tokens=-1)
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    with pytest.raises(UsageError, match=r"no system.*--system"):
        Conversation(chat_model(refusing), system="Be brief.")
    with Conversation(chat_model()) as conversation, pytest.raises(UsageError, match="message is empty"):
        conversation.say("")


def test_a_model_for_embeddings(tmp_path: Path) -> None:
    from bitexport.convert import convert
    from bitexport.evaluation import evaluate
    from bitexport.runtime.completion import Completion

    file = tmp_path / "embedding.gguf"
    convert(embedding_checkpoint(tmp_path / "embedding"), file, embed_type="f16")
    for use in (
        lambda: Conversation(file, template=False),
        lambda: Completion(file, "Hello"),
        lambda: evaluate(file, text="Hello"),
    ):
        with pytest.raises(UsageError, match=r"embedding model \(pooling last\).*bitexport embed"):
            use()
