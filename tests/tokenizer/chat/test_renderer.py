"""Templates render as transformers and llama-cpp-python render them, within limits."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from bitexport.runtime.library import bind
from bitexport.tokenizer.chat import TemplateError, render_template, renderer
from tests.support.repository import REPOSITORY
from tests.support.template_bombs import MEMORY, TIME

#: Those of llama.cpp's collection, which comes with its source.
PUBLISHED = sorted((REPOSITORY / "build/native/llama.cpp-source/models/templates").glob("*.jinja"))

MESSAGES = [
    {"role": "system", "content": "Be <brief> & kind."},
    {"role": "user", "content": " Grüße \n"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Again?"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Its 'weather'",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string", "description": "Where"}},
                "required": ["place"],
            },
        },
    }
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def outcome(function: Callable[[], Any]) -> Any:
    """The result, or that there is none."""
    try:
        return function()
    except Exception:
        return None


@pytest.mark.skipif(not PUBLISHED, reason="llama.cpp's source has no templates")
@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["", "tools"])
def test_published_templates_render_as_before(path: Path, tools: Any) -> None:
    bind()
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    template = path.read_text(encoding="utf-8")
    formatter = Jinja2ChatFormatter(template, **SPECIAL)

    def compare(messages: list[dict[str, str]]) -> None:
        given = {"messages": messages, "tools": tools, **SPECIAL}
        for_llama = {**given, "functions": None, "function_call": None, "tool_choice": None}
        assert outcome(
            lambda: render_template(template, {**for_llama, "add_generation_prompt": True})
        ) == outcome(lambda: formatter(messages=messages, tools=tools).prompt)
        for_training = {**given, "documents": None, "add_generation_prompt": False}
        assert outcome(lambda: render_template(template, for_training)) == outcome(
            lambda: render_jinja_template([messages], tools, chat_template=template, **SPECIAL)[0][0]
        )

    for messages in (MESSAGES, MESSAGES[1:2], MESSAGES[1:]):
        compare(messages)


@pytest.mark.parametrize("template", MEMORY.values(), ids=MEMORY)
def test_memory_is_limited(template: str) -> None:
    started = time.perf_counter()
    with pytest.raises(TemplateError, match="1024 MiB of memory"):
        render_template(template, {})
    assert time.perf_counter() - started < 10
    assert render_template("{{ a }}", {"a": "still works"}) == "still works"


@pytest.mark.parametrize("template", TIME.values(), ids=TIME)
def test_time_is_limited(template: str) -> None:
    started = time.perf_counter()
    with pytest.raises(TemplateError, match="takes more than 5 s"):
        render_template(template, {})
    assert time.perf_counter() - started < 60
    assert render_template("{{ a }}", {"a": "still works"}) == "still works"


def test_errors_are_those_of_the_template() -> None:
    from jinja2.exceptions import SecurityError, UndefinedError

    for template, kind, message in (
        ("{{ raise_exception('only users') }}", ValueError, "^only users$"),
        ("{{ a.b }}", UndefinedError, "'a' is undefined"),
        ("{{ 1 + 'a' }}", TypeError, "unsupported operand"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", RecursionError, "recursion"),
        ("{{ cycler.__init__.__globals__ }}", SecurityError, "unsafe"),
    ):
        with pytest.raises(kind, match=message):
            render_template(template, {})
    with pytest.raises(TypeError, match="gets plain values"):
        render_template("{{ a }}", {"a": lambda: 1})


def test_a_large_conversation() -> None:
    text = "Grüße \ud800" * 1_000_000
    assert render_template("{{ a }}", {"a": text}) == text


def test_a_worker_that_is_killed_is_started_again() -> None:
    render_template("a", {})
    process = renderer._process
    assert process is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert render_template("{{ 1 + 1 }}", {}) == "2"


def test_threads_and_forks() -> None:
    found: dict[int, str] = {}

    def render(number: int) -> None:
        found[number] = render_template("{{ a }}", {"a": number})

    threads = [threading.Thread(target=render, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: str(number) for number in range(16)}
    child = os.fork()
    if child == 0:
        right = all(render_template("{{ a }}", {"a": number}) == str(number) for number in range(100))
        os._exit(0 if right else 1)
    for number in range(100):
        assert render_template("{{ a }}", {"a": -number}) == str(-number)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
