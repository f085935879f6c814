"""``bitexport chat``: with pipes, and on a real terminal."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.chat.conftest import ChatModel
from tests.support.cli import one_line
from tests.support.gguf_files import rewritten
from tests.support.terminal import Terminal
from tests.support.tiny_models import Shape

Cli = Callable[..., "CompletedProcess[str]"]
BRIEF = ("--max-tokens", "5", "--temperature", "0")


def test_turns_line_by_line(chat_model: ChatModel, run_cli: Cli) -> None:
    done = run_cli("chat", chat_model(), *BRIEF, "--json", input="Hello\n\nand \\\nnow?\n")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    said = [message["content"] for message in document["messages"] if message["role"] == "user"]
    assert said == ["Hello", "and \nnow?"]
    answers = [message["content"] for message in document["messages"] if message["role"] == "assistant"]
    assert [each["tokens"] for each in document["answers"]] == [5, 5]
    plain = run_cli("chat", chat_model(), *BRIEF, "--quiet", input="Hello\nand \\\nnow?")
    assert plain.stdout == "".join(f"{text}\n" for text in answers)


def test_blocks_and_commands(chat_model: ChatModel, run_cli: Cli, tmp_path: Path) -> None:
    saved = tmp_path / "my chat.json"
    lines = [
        "Hello",
        "/clear",
        '"""',
        "/clear",
        "two",
        '"""',
        "/regen",
        "/stats",
        f"/save {saved}",
        "/quit",
        "no",
    ]
    done = run_cli("chat", chat_model(), *BRIEF, "--system", "Be brief.", input="\n".join(lines))
    assert done.returncode == 0, done.stderr
    messages = json.loads(saved.read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert messages[1]["content"] == "/clear\ntwo"
    assert "context" in done.stderr
    assert "always the same" in done.stderr  # /regen at temperature 0
    assert done.stdout.endswith(2 * (messages[2]["content"] + "\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/frobnicate\n", "there is no command /frobnicate; /help lists them"),
        ("/save\n", "/save needs the name of a file"),
        ("/regen\n", "there is no answer to replace"),
        ("/stats\n", "no figures before the first answer"),
        ('"""\nHello\n', "the input ends within"),
        ("Hello \\\n", "the input ends after a backslash"),
        ("word " * 400 + "\n", "and the context has 256; your message was taken back"),
    ],
)
def test_a_mistake_in_a_script_ends_it(chat_model: ChatModel, run_cli: Cli, text: str, message: str) -> None:
    assert message in one_line(run_cli("chat", chat_model(), input=text), 2)


def test_input_that_is_not_utf8(chat_model: ChatModel, tmp_path: Path, run_cli: Cli) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"\xff\xfe\n")
    with path.open("rb") as stream:
        assert "not UTF-8" in one_line(run_cli("chat", chat_model(), stdin=stream), 2)


def test_without_a_chat_template(chat_model: ChatModel, run_cli: Cli) -> None:
    line = one_line(run_cli("chat", chat_model(None), input=""), 2)
    assert "--no-template" in line
    assert "bitexport run" in line
    assert run_cli("chat", chat_model(None), "--no-template", *BRIEF, input="def f(").returncode == 0


@pytest.mark.parametrize("template", ["{% for m in messages %}", "{{ 'a' * (3 * 10**9) }}", ["a"]])
def test_an_unusable_template(
    chat_model: ChatModel, run_cli: Cli, tmp_path: Path, template: str | list[str]
) -> None:
    """One that is damaged, one that takes all memory, and one that is not text."""
    path = rewritten(chat_model(), tmp_path / "m.gguf", metadata={"tokenizer.chat_template": template})
    line = one_line(run_cli("chat", path, input="Hello"), 1)
    assert line.startswith(f"error: {path}: its chat template ")
    assert f"chat without it: bitexport chat {path} --no-template" in line
    done = run_cli("chat", path, "--no-template", *BRIEF, "--quiet", input="def f(")
    assert done.returncode == 0
    assert "template" not in done.stderr


def test_a_folder(checkpoint_of: Callable[..., Path], run_cli: Cli) -> None:
    folder = checkpoint_of("packed-multiply")
    for command in (["chat", folder], ["run", folder, "-p", "x"], ["bench", folder]):
        line = one_line(run_cli(*command), 1)
        assert f"convert it first: bitexport convert {folder} {folder.name}.gguf" in line


def test_a_chat_on_a_terminal(chat_model: ChatModel) -> None:
    with Terminal("chat", chat_model(), *BRIEF) as terminal:
        terminal.wait_for("> ")
        assert "model.gguf: a context of 256 tokens; /help lists" in terminal.shown
        terminal.type("Hello\n")
        terminal.wait_for("> ", 2)
        terminal.type('"""\n/quit\n"""\n')
        terminal.wait_for("> ", 3)
        assert terminal.shown.count("\n. ") == 2
        terminal.type("\x1b[A\x1b[A\x1b[A\x1b[A\n")  # the history: four lines back is Hello
        terminal.wait_for("> ", 4)
        assert terminal.shown.count("Hello") == 2
        terminal.type("/nonsense\n")
        terminal.wait_for("error: there is no command /nonsense")
        terminal.wait_for("> ", 5)
        terminal.type("/stats\n/help\n")
        terminal.wait_for("Ctrl-C ends an answer.")
        assert "tokens" in terminal.shown
        terminal.wait_for("> ", 7)  # Ctrl-D before the prompt would go to the terminal, not to the line
        terminal.type("\x04")
        assert terminal.finish() == 0
        assert "interrupted" not in terminal.shown


def test_quit_on_a_terminal(chat_model: ChatModel) -> None:
    with Terminal("chat", chat_model(), "--quiet") as terminal:
        terminal.wait_for("> ")
        assert terminal.shown == "> "
        terminal.type("/quit\n")
        assert terminal.finish() == 0


@pytest.fixture(scope="module")
def slow_model(chat_model: ChatModel) -> Path:
    return chat_model(shape=Shape(hidden=512, ffn=2048, layers=8, context=4096))


#: Random text that goes on for long.
ENDLESS = ("--no-template", "--temperature", "5", "--seed", "1")


def test_ctrl_c_ends_the_answer_and_then_the_program(slow_model: Path) -> None:
    with Terminal("chat", slow_model, *ENDLESS) as terminal:
        terminal.wait_for("> ")
        terminal.type("Hello\n")
        terminal.wait_for("Hello\n")
        terminal.wait_for_more(20)
        terminal.type("\x03")
        terminal.wait_for("interrupted; Ctrl-C again or Ctrl-D ends the chat")
        terminal.wait_for("\n> ")
        terminal.type("/stats\n")  # typing something between the two starts anew
        terminal.wait_for("generated at")
        terminal.wait_for("\n> ", 2)
        terminal.type("\x03")
        terminal.wait_for("interrupted; Ctrl-C again", 2)
        assert terminal.process.poll() is None
        terminal.type("\x03")
        assert terminal.finish() == 130
        assert terminal.shown.rstrip().endswith("interrupted")


@pytest.mark.parametrize("during_answer", [True, False])
def test_being_terminated_is_not_ctrl_c(slow_model: Path, during_answer: bool) -> None:
    with Terminal("chat", slow_model, *ENDLESS) as terminal:
        terminal.wait_for("> ")
        if during_answer:
            terminal.type("Hello\n")
            terminal.wait_for("Hello\n")
        terminal.process.send_signal(signal.SIGTERM)
        with suppress(OSError):  # it has ended
            terminal.type("\n")  # Python's input() sees a signal that came just before it waited only now
        assert terminal.finish() == 130
        assert "Ctrl-C again" not in terminal.shown


def test_a_prompt_does_not_get_into_a_pipe(chat_model: ChatModel) -> None:
    """stdin is a terminal, stdout is not."""
    reading, writing = os.pipe()
    with Terminal("chat", chat_model(), *BRIEF, output=writing) as terminal:
        os.close(writing)
        terminal.wait_for("> ")
        terminal.type("Hello\n")
        terminal.wait_for("> ", 2)
        terminal.type("\x04")
        assert terminal.finish() == 0
    with os.fdopen(reading, "rb") as stream:
        text = stream.read().decode()
    assert "> " not in text
    assert text
