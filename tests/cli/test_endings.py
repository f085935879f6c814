"""How commands end when interrupted or when nobody reads on, and what they say of NaN."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import typer

from bitexport.cli import app, main
from bitexport.convert import convert
from tests.support.cli import one_line
from tests.support.embedding_models import embedding_checkpoint
from tests.support.repository import REPOSITORY

Cli = Callable[..., "CompletedProcess[str]"]
Maker = Callable[..., Path]
Words = Callable[[str], "list[str]"]

# Takes the place of a library that bitexport imports, and presses Ctrl-C during that import.
INTERRUPTING = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"

# Presses Ctrl-C when the command is over and Python cleans up.
INTERRUPTED_AT_EXIT = """
import atexit, os, signal, sys
atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
sys.argv = ["bitexport", "--version"]
from bitexport.__main__ import main
main()
"""

posix = pytest.mark.skipif(os.name != "posix", reason="signals, pipes and file names are different elsewhere")


@pytest.fixture(scope="module")
def embedding_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedding")
    convert(embedding_checkpoint(folder / "checkpoint", "Qwen3Model"), folder / "m.gguf", embed_type="f16")
    return folder / "m.gguf"


@pytest.fixture(scope="module")
def words(checkpoint_of: Maker, gguf_of: Maker, tmp_path_factory: pytest.TempPathFactory) -> Words:
    """A command's words, with paths for those in capital letters."""
    folder = tmp_path_factory.mktemp("unread")
    (folder / "text.txt").write_text("def add(left, right):\n    return left + right\n" * 8)
    paths = {
        "CKPT": checkpoint_of("packed-multiply"),
        "GGUF": gguf_of("packed-multiply"),
        "OTHER": gguf_of("packed-multiply", seed=1),
        "OUT": folder / "out.gguf",
        "TEXT": folder / "text.txt",
    }
    return lambda command: [str(paths.get(word, word)) for word in command.split()]


@posix
@pytest.mark.parametrize("module", ["typer", "numpy"])  # of the command line, and of the command
def test_ctrl_c_during_the_imports(run_cli: Cli, tmp_path: Path, module: str) -> None:
    (tmp_path / f"{module}.py").write_text(INTERRUPTING)
    path = os.pathsep.join((str(tmp_path), str(REPOSITORY), os.environ.get("PYTHONPATH", "")))
    done = run_cli("run", "/nowhere/m.gguf", "-p", "a", env={"PYTHONPATH": path})
    assert one_line(done, 130) == "interrupted"


def test_little_is_imported_before_ctrl_c_is_handled() -> None:
    program = "import sys, bitexport.__main__; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert "bitexport.__main__" in done.stdout
    assert "typing" not in done.stdout.split()


@posix
def test_ctrl_c_while_python_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_AT_EXIT],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def without_a_reader(*arguments: str | Path, stderr: bool = False) -> tuple[int, str]:
    """The exit code and stderr of a command whose output nobody reads; with ``stderr``, neither of them."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "bitexport", *map(str, arguments)],
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        stdout=writing,
        stderr=writing if stderr else subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    os.close(writing)
    return done.returncode, done.stderr or ""


@posix
@pytest.mark.parametrize("options", [(), ("--json",), ("--echo", "--logprobs", "2")])
def test_run_for_a_reader_that_leaves(gguf_of: Maker, options: tuple[str, ...]) -> None:
    """``bitexport run ... | head``."""
    arguments = ("run", gguf_of("packed-multiply"), "-p", "a", "-n", "40", "--quiet", *options)
    assert without_a_reader(*arguments) == (0, "")


#: Commands that print a result when their work is done, and their exit codes.
UNREAD = [
    ("--help", 0),
    ("--version", 0),
    ("bench --help", 0),
    ("inspect GGUF", 0),
    ("inspect GGUF --json", 0),
    ("convert CKPT OUT --force -q", 0),
    ("convert CKPT OUT --force -q --json", 0),
    ("bench GGUF -t 1 -r 1 --prompt-tokens 8 -n 2 -q", 0),
    ("bench GGUF -t 1 -r 1 --prompt-tokens 8 -n 0 --compare q4_0 -q", 0),
    ("eval CKPT --student-gguf GGUF --text TEXT -q", 0),
    ("parity CKPT GGUF --prompt def -q", 0),
    ("parity CKPT OTHER --prompt def -q", 3),
    ("parity CKPT OTHER --prompt def -q --json", 3),
]


@posix
@pytest.mark.parametrize(("command", "code"), UNREAD, ids=[command for command, _ in UNREAD])
def test_a_result_that_nobody_reads(words: Words, command: str, code: int) -> None:
    """``bitexport bench ... | head`` ends as it would have without ``head``; so does a verdict."""
    found, errors = without_a_reader(*words(command))
    assert found == code, errors
    assert errors.startswith("failed: " if code == 3 else ""), errors
    assert (errors.count("\n") == 1) == (code == 3), errors


@posix
@pytest.mark.parametrize(
    ("command", "code"), [("convert CKPT OUT --force", 0), ("parity CKPT OTHER --prompt def", 3)]
)
def test_messages_that_nobody_reads(words: Words, command: str, code: int) -> None:
    """``bitexport convert ... 2>&1 | head``: the work is done."""
    output = Path(words("OUT")[0])
    output.unlink(missing_ok=True)
    assert without_a_reader(*words(command), stderr=True)[0] == code
    assert output.exists() == ("OUT" in command)


@posix
@pytest.mark.parametrize("options", [("--json",), ("--jsonl",), ()])
def test_embed_for_a_reader_that_leaves(embedding_gguf: Path, options: tuple[str, ...]) -> None:
    assert without_a_reader("embed", embedding_gguf, "--text", "a", *options) == (0, "")


@posix
@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize("command", [("run", "-p", "a", "-n", "3"), ("inspect",)])
def test_a_path_that_is_not_utf_8(
    gguf_of: Maker, run_cli: Cli, tmp_path: Path, command: tuple[str, ...], options: tuple[str, ...]
) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.gguf")
    try:
        path.write_bytes(gguf_of("packed-multiply").read_bytes())
    except OSError:
        pytest.skip("this file system has only names that are UTF-8")
    verb, *arguments = command
    done = run_cli(verb, path, *arguments, "--quiet", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def float_options() -> list[tuple[str, str]]:
    """Every option of every command whose value is a float."""
    return [
        (verb, parameter.opts[0])
        for verb, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
        for parameter in command.params
        if parameter.type_descriptor.annotation is float
    ]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(("verb", "option"), float_options())
def test_a_number_that_is_none(
    checkpoint_of: Maker,
    gguf_of: Maker,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    option: str,
    value: str,
) -> None:
    models = {
        "parity": [checkpoint_of(), gguf_of()],
        "run": [gguf_of(), "-p", "a"],
        "chat": [gguf_of()],
        "worker": [],
    }
    with pytest.raises(SystemExit) as ended:
        main([verb, *map(str, models[verb]), f"{option}={value}"])
    errors = capsys.readouterr().err
    assert ended.value.code == 2
    name = option.removeprefix("--").replace("-", " ")
    assert name in errors.replace("-", " ").replace("_", " ")


def test_there_are_options_with_floats() -> None:
    found = set(float_options())
    assert {("parity", "--min-cosine"), ("run", "--temperature"), ("chat", "--min-p")} <= found
