"""Chat templates give the text that transformers gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitexport.errors import BitexportWarning, GGUFError, UsageError
from bitexport.evaluation.tasks.chat import ChatTemplates

TURNS = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
STRIPPED = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}\n{% endfor %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TURNS
WITH_TOOLS = "{% if tools is not none %}tools{% endif %}{% if documents %}documents{% endif %}" + TURNS

SPECIAL = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}

QUESTION = [{"role": "user", "content": "What is 1 + 1? "}]
SHOTS = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "four"},
    *QUESTION,
]
BEGUN = [*QUESTION, {"role": "assistant", "content": "The answer is "}]


def templates(template: str, **named: str) -> ChatTemplates:
    metadata: dict[str, Any] = {"tokenizer.chat_template": template}
    metadata |= {f"tokenizer.chat_template.{name}": text for name, text in named.items()}
    return ChatTemplates("model.gguf", metadata, SPECIAL)


@pytest.mark.parametrize("template", [TURNS, STRIPPED, NO_SYSTEM, WITH_TOOLS])
@pytest.mark.parametrize(("messages", "answer_next"), [(QUESTION, True), (SHOTS, True), (BEGUN, False)])
@pytest.mark.filterwarnings("ignore:.*system message")
def test_equal_to_the_hf_backend(
    checkpoint_of: Callable[..., Path], template: str, messages: list[dict[str, str]], answer_next: bool
) -> None:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    class Backend:
        """What HFLM.apply_chat_template uses of itself."""

        tokenizer = AutoTokenizer.from_pretrained(checkpoint_of("packed-multiply"))
        chat_template_args: dict[str, Any] = {}  # noqa: RUF012

    Backend.tokenizer.chat_template = template
    expected = HFLM.apply_chat_template(Backend, messages, add_generation_prompt=answer_next)  # type: ignore[arg-type]
    assert templates(template).render(messages, answer_next=answer_next) == expected


def test_a_system_message_that_is_left_out_is_warned_of() -> None:
    with pytest.warns(BitexportWarning, match="does not take a system message"):
        text = templates(NO_SYSTEM).render(SHOTS, answer_next=True)
    assert "briefly" not in text


def test_templates_are_chosen_by_name() -> None:
    both = templates(TURNS, short=STRIPPED)
    assert both.choose("short") == STRIPPED
    assert both.render(QUESTION, answer_next=True) == "[user] What is 1 + 1?\n"
    with pytest.raises(UsageError, match=r"no chat template named other; expected one of short"):
        both.choose("other")


def test_what_cannot_be_used_is_an_error() -> None:
    with pytest.raises(UsageError, match="has no chat template"):
        ChatTemplates("model.gguf", {}, SPECIAL).render(QUESTION, answer_next=True)
    with pytest.raises(GGUFError, match="is damaged"):
        templates("{% for %}").render(QUESTION, answer_next=True)
    with pytest.raises(UsageError, match="does not take the task's messages: no"):
        templates("{{ raise_exception('no') }}").render(QUESTION, answer_next=True)
    with pytest.raises(UsageError, match="leaves out the beginning of the answer"):
        templates("{{ messages[0]['content'] }}").render(BEGUN, answer_next=False)
