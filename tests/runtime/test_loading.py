"""``bitexport.load`` in threads, after a fork and at exit, and the arguments that it refuses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import bitexport
from bitexport.errors import UsageError
from bitexport.runtime.session import Session

Maker = Callable[..., Path]


@pytest.fixture(scope="module")
def model(gguf_of: Maker) -> Path:
    return gguf_of("packed-multiply")


def run_program(source: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter of its own, as the first user of the library."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("n_context", 64, "load has no argument 'n_context'; did you mean n_ctx?"),
        ("frobnicate", 1, "load has no argument 'frobnicate'; see llama_cpp.Llama"),
        ("lora_path", "/nowhere/adapter.gguf", "lora_path is /nowhere/adapter.gguf, which is not a file"),
    ],
)
def test_arguments_that_llama_cpp_would_ignore_or_crash_on(
    model: Path, argument: str, value: object, message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        bitexport.load(model, **{argument: value})


def test_log_probabilities_of_an_echoed_prompt_are_refused(model: Path) -> None:
    llama = bitexport.load(model, n_ctx=64, logits_all=True)
    with pytest.raises(UsageError, match=re.escape("echo=True with logprobs")):
        llama.create_completion("def", max_tokens=1, echo=True, logprobs=1)
    with pytest.raises(UsageError, match=re.escape("echo=True with logprobs")):
        llama("def", max_tokens=1, echo=True, logprobs=1)
    assert llama("def", max_tokens=1, logprobs=1, temperature=0)["choices"][0]["logprobs"]
    llama.close()


def test_the_first_load_may_be_in_many_threads_and_output_stays_open(model: Path) -> None:
    """The import of llama_cpp, and file descriptors 1 and 2, belong to the whole process."""
    done = run_program(
        """
        import os, sys, threading
        import bitexport
        problems = []
        def work():
            try:
                for _ in range(20):
                    bitexport.load(sys.argv[1], n_ctx=64, n_threads=1).close()
            except BaseException as error:
                problems.append(repr(error))
        before = os.fstat(1).st_ino, os.fstat(2).st_ino
        threads = [threading.Thread(target=work) for _ in range(6)]
        [thread.start() for thread in threads]
        while any(thread.is_alive() for thread in threads):
            assert (os.fstat(1).st_ino, os.fstat(2).st_ino) == before
        [thread.join() for thread in threads]
        assert (os.fstat(1).st_ino, os.fstat(2).st_ino) == before
        print("out", problems)
        print("err", file=sys.stderr)
        """,
        model,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "out []\n", "err\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_model_in_a_forked_child_says_so_instead_of_waiting(model: Path) -> None:
    done = run_program(
        """
        import os, sys
        import bitexport
        from bitexport.errors import UsageError
        from bitexport.runtime.session import Session
        llama = bitexport.load(sys.argv[1], n_ctx=64, n_threads=2)
        session = Session(sys.argv[1], n_ctx=64, n_threads=2)
        llama("def", max_tokens=1)
        session.feed([1, 2])
        child = os.fork()
        if child == 0:
            for use in (lambda: llama("def add", max_tokens=2), lambda: session.feed([3])):
                try:
                    use()
                except UsageError as error:
                    print(error, flush=True)
            own = bitexport.load(sys.argv[1], n_ctx=64, n_threads=2)
            own("def", max_tokens=1)
            print("loaded in the child", flush=True)
            sys.exit(0)
        _, status = os.waitpid(child, 0)
        llama("def add", max_tokens=2)
        print("status", status)
        """,
        model,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert re.match(r"this model was loaded in process \d+, from which this one was forked", lines[0])
    assert re.match(r"this session's model was loaded in process \d+", lines[1])
    assert lines[2:] == ["loaded in the child", "status 0"]
    assert done.stderr == ""


def test_an_open_model_leaves_no_traceback_at_exit(model: Path) -> None:
    done = run_program(
        """
        import sys
        import bitexport
        from bitexport.runtime.session import Session
        llama = bitexport.load(sys.argv[1], n_ctx=64)
        session = Session(sys.argv[1], n_ctx=64)
        again = [bitexport.load(sys.argv[1], n_ctx=64)]
        again.append(again)  # a cycle is collected late
        """,
        model,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_session_still_works_beside_a_model(model: Path) -> None:
    llama = bitexport.load(model, n_ctx=64)
    with Session(model, n_ctx=64) as session:
        assert session.feed([1, 2]).shape == (session.n_vocab,)
    llama.close()
