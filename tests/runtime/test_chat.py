"""Models whose chat template is ordinary, broken, or made to take all memory or time."""

from __future__ import annotations

import resource
import subprocess
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import bitexport
from bitexport.errors import BitexportWarning, GGUFError
from tests.support.gguf_files import rewritten
from tests.support.template_bombs import BROKEN, MEMORY, TIME

Maker = Callable[..., Path]
HELLO = [{"role": "user", "content": "def"}]


@pytest.fixture
def with_template(gguf_of: Maker, tmp_path: Path) -> Callable[..., Path]:
    def make(template: str, **named: str) -> Path:
        keys = {f"tokenizer.chat_template.{name}": text for name, text in named.items()}
        return rewritten(
            gguf_of("packed-multiply"),
            tmp_path / "x.gguf",
            metadata={"tokenizer.chat_template": template, **keys},
        )

    return make


def test_a_chat_is_as_llama_cpp_python_makes_it(with_template: Callable[..., Path]) -> None:
    template = "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}{% endfor %} {{ tools }}"
    path = with_template(template, loud="{{ messages[0].content | upper }}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llama = bitexport.load(path, n_ctx=128, n_threads=1)
    assert llama.chat_format == "chat_template.default"
    assert llama.metadata["tokenizer.chat_template"] == template
    answer = llama.create_chat_completion(HELLO, max_tokens=4, temperature=0)
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    theirs = Jinja2ChatFormatter(
        template, "<|end_of_text|>", "<|begin_of_text|>", stop_token_ids=[llama.token_eos()]
    ).to_chat_handler()
    expected = theirs(llama=llama, messages=HELLO, max_tokens=4, temperature=0)
    assert answer["usage"] == expected["usage"]
    assert answer["choices"] == expected["choices"]
    assert answer["usage"]["prompt_tokens"] > 5
    llama.chat_format = "chat_template.loud"
    assert llama.create_chat_completion(HELLO, max_tokens=1)["usage"]["prompt_tokens"] == 3
    llama.close()


@pytest.mark.parametrize("template", [*MEMORY.values(), TIME["loops"]])
def test_a_bomb_neither_stops_loading_nor_goes_off(with_template: Callable[..., Path], template: str) -> None:
    path = with_template(template)
    started = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    llama = bitexport.load(path, n_ctx=64, n_threads=1)
    assert llama("def", max_tokens=1)["usage"]["completion_tokens"] == 1
    with pytest.raises(
        GGUFError, match=r"its chat template .*(memory|5 s).*give bitexport.load a chat_format"
    ):
        llama.create_chat_completion(HELLO, max_tokens=1)
    llama.close()
    assert time.perf_counter() - started < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


@pytest.mark.parametrize("problem", BROKEN)
def test_a_broken_template_is_a_warning(with_template: Callable[..., Path], problem: str) -> None:
    path = with_template(BROKEN[problem][0])
    expected = f"its chat template .*{problem}.*text can be continued"
    with pytest.warns(BitexportWarning, match=expected) as caught:
        llama = bitexport.load(path, n_ctx=64, n_threads=1)
    assert len(caught) == 1
    assert llama("def", max_tokens=1)["usage"]["completion_tokens"] == 1
    with pytest.raises(GGUFError, match=problem):
        llama.create_chat_completion(HELLO, max_tokens=1)
    llama.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # another format is used
        llama = bitexport.load(path, n_ctx=128, n_threads=1, chat_format="chatml")
    assert llama.create_chat_completion(HELLO, max_tokens=1)["usage"]["completion_tokens"] == 1
    llama.close()


def test_run_continues_a_text_with_one_line(
    with_template: Callable[..., Path], run_cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    path = with_template("{% if a %}" * 300 + "{% endif %}" * 300)
    done = run_cli("run", path, "-p", "def", "-n", "2", "--quiet")
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert "its chat template is nested more than 100 levels deep; text can be continued" in line
