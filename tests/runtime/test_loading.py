"""``bitexport.load`` in threads, after a fork and at exit, and the arguments that it refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest

import bitexport
from bitexport.errors import BitexportError, UsageError
from bitexport.runtime.completion import Completion
from bitexport.runtime.session import Session
from tests.support.repository import REPOSITORY

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
        ("lora_path", __file__, "lora_path: test_loading.py: not a GGUF file"),
        ("type_k", 36, "type_k is 36, not a type of the cache; expected one of 0 (f32), 1 (f16)"),
        ("type_v", 99, "type_v is 99"),
        ("n_batch", -1, "n_batch is -1; expected a whole number from 1"),
        ("n_ctx", 2**40, "n_ctx is 1099511627776; expected a whole number from 0"),
        ("n_ctx", 2**30, "a context of 1073741824 tokens was requested; expected at most 4096"),
        ("n_ctx", "64", "n_ctx is '64'; expected a whole number"),
        ("chat_handler", SimpleNamespace(clip_model_path="/nowhere"), "reads images with libmtmd"),
    ],
)
def test_arguments_that_llama_cpp_would_ignore_or_crash_on(
    model: Path, argument: str, value: object, message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        bitexport.load(model, **{argument: value})


def test_a_stretched_context_may_be_longer_than_the_trained_one(model: Path) -> None:
    llama = bitexport.load(model, n_ctx=8192, rope_freq_scale=0.1, n_threads=1)
    assert llama.n_ctx() == 8192
    llama.close()


def write_adapter(
    path: Path, architecture: str = "bitnet-b1.58", rows: int = 256, kind: str = "lora"
) -> Path:
    """A LoRA adapter of rank 4 for the first query projection."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", kind)
    writer.add_float32("adapter.lora.alpha", 4.0)
    chance = np.random.default_rng(0)
    writer.add_tensor("blk.0.attn_q.weight.lora_a", chance.normal(size=(4, 256)).astype(np.float32))
    writer.add_tensor("blk.0.attn_q.weight.lora_b", chance.normal(size=(rows, 4)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_lora_adapter_changes_the_logits(model: Path, tmp_path: Path) -> None:
    def logits(**options: object) -> np.ndarray:
        llama = bitexport.load(model, n_ctx=64, n_threads=1, logits_all=True, **options)
        llama.eval([5, 6, 7])
        found = np.array(llama.scores[2])
        llama.close()
        return found

    path = write_adapter(tmp_path / os.fsdecode(b"lora-\xff.gguf"))  # a name that is not UTF-8
    assert np.abs(logits(lora_path=path) - logits()).max() > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "other"}, "which is not a LoRA adapter"),
        ({"architecture": "llama"}, "an adapter for llama; packed-multiply.gguf is bitnet-b1.58"),
        ({"rows": 128}, "cannot be used with"),
    ],
)
def test_a_lora_adapter_of_something_else(
    model: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(BitexportError, match=re.escape(message)):
        bitexport.load(model, n_ctx=64, lora_path=write_adapter(tmp_path / "lora.gguf", **change))


@pytest.mark.parametrize("limit", [1, 4, 7])
def test_a_stream_has_at_most_as_many_tokens_as_asked_for(model: Path, limit: int) -> None:
    """Also inside an unfinished character, where llama-cpp-python goes on; this model writes random bytes."""
    llama = bitexport.load(model, n_ctx=256, n_threads=1)
    evaluated: list[int] = []
    evaluate = llama.eval
    llama.eval = lambda tokens: (evaluated.extend(tokens), evaluate(tokens))
    prompt = llama.tokenize("é".encode())
    for seed in range(8):
        evaluated.clear()
        llama.reset()
        list(llama("é", max_tokens=limit, temperature=500.0, top_k=0, top_p=1.0, seed=seed, stream=True))
        assert len(evaluated) - len(prompt) < limit  # the last token is not evaluated
    llama.close()


@pytest.mark.parametrize("seed", range(4))
def test_without_a_limit_text_ends_with_the_context(model: Path, seed: int) -> None:
    llama = bitexport.load(model, n_ctx=256, n_threads=1)
    text = llama("é", max_tokens=-1, temperature=500.0, top_k=0, top_p=1.0, seed=seed)
    assert text["usage"]["total_tokens"] <= 256
    assert text["choices"][0]["finish_reason"] in ("length", "stop")
    llama.close()


def test_positional_arguments_are_checked_too(model: Path) -> None:
    llama = bitexport.load(model, n_ctx=64, logits_all=True)
    with pytest.raises(UsageError, match=re.escape("echo=True with logprobs")):
        llama.create_completion("def", None, 1, 0.8, 0.95, 0.05, 1.0, 1, True)
    llama.close()


def test_log_probabilities_of_an_echoed_prompt_are_refused(model: Path) -> None:
    llama = bitexport.load(model, n_ctx=64, logits_all=True)
    with pytest.raises(UsageError, match=re.escape("echo=True with logprobs")):
        llama.create_completion("def", max_tokens=1, echo=True, logprobs=1)
    with pytest.raises(UsageError, match=re.escape("echo=True with logprobs")):
        llama("def", max_tokens=1, echo=True, logprobs=1)
    assert llama("def", max_tokens=1, logprobs=1, temperature=0)["choices"][0]["logprobs"]
    llama.close()


def test_the_first_loads_may_be_in_many_threads_and_output_stays_open(model: Path) -> None:
    """The import of llama_cpp, and file descriptors 1 and 2, belong to the whole process."""
    program = "tests.support.programs.load_in_threads"
    done = subprocess.run(
        [sys.executable, "-m", program, str(model), "--loads", "60", "--threads", "6"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "stderr is open\n")
    report = json.loads(done.stdout)
    assert (report["loads"], report["problems"]) == (60, [])
    assert report["checks"] > 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_that_is_forked_during_a_load_can_load(model: Path) -> None:
    """The thread that loads, and would release its locks, is not in the child."""
    done = run_program(
        """
        import os, signal, sys, threading
        import bitexport
        def load():
            bitexport.load(sys.argv[1], n_ctx=64, n_threads=1).close()
        load()
        over = False
        def work():
            while not over:
                load()
        threads = [threading.Thread(target=work) for _ in range(3)]
        [thread.start() for thread in threads]
        for _ in range(12):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                load()
                os._exit(0)
            print(os.waitpid(child, 0)[1])
        over = True
        [thread.join() for thread in threads]
        """,
        model,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n" * 12, "")


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


def test_daemon_threads_that_still_generate_at_exit(model: Path) -> None:
    """Freeing a model under a thread that uses it crashed, or waited forever."""
    for _ in range(3):
        done = run_program(
            """
            import sys, threading, time
            import bitexport
            from bitexport.runtime.session import Session
            llama = bitexport.load(sys.argv[1], n_ctx=256, n_threads=2)
            session = Session(sys.argv[1], n_ctx=256, n_threads=2)
            def complete():
                while True:
                    llama("def", max_tokens=200, temperature=3.0)
            def feed():
                while True:
                    session.logits([1, 2, 3])
            for work in (complete, feed):
                threading.Thread(target=work, daemon=True).start()
            time.sleep(0.2)
            print("end")
            """,
            model,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_embedding_in_a_forked_child_says_so_instead_of_waiting(model: Path) -> None:
    done = run_program(
        """
        import os, sys
        import bitexport
        from bitexport.errors import UsageError
        from bitexport.runtime.embedding import EmbeddingSession
        llama = bitexport.load(sys.argv[1], n_ctx=64, n_threads=2, embedding=True)
        session = EmbeddingSession(sys.argv[1], pooling=None, longest=16, n_threads=2)
        llama.embed("def")
        session.token_vectors([1, 2])
        if os.fork() == 0:
            for use in (lambda: llama.embed("def"), lambda: session.token_vectors([1, 2])):
                try:
                    use()
                except UsageError as error:
                    print(error, flush=True)
            os._exit(0)
        os.wait()
        """,
        model,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(
        r"this model was loaded in process .*\nthis session's model was loaded in process .*\n", done.stdout
    )


def test_a_failed_constructor_leaves_no_traceback(tmp_path: Path) -> None:
    done = run_program(
        """
        import sys
        from bitexport.errors import GGUFError
        from bitexport.runtime.embedding import EmbeddingSession
        from bitexport.runtime.session import Session
        for kind, options in (Session, {}), (EmbeddingSession, {"pooling": None, "longest": 16}):
            try:
                kind(sys.argv[1], **options)
            except GGUFError:
                print("refused")
        """,
        tmp_path / "none.gguf",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "refused\nrefused\n", "")


def test_a_path_that_is_not_utf_8(model: Path, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"model-\xff\xfe.gguf")
    path.hardlink_to(model)
    llama = bitexport.load(path, n_ctx=64, n_threads=1)
    assert llama("def", max_tokens=1)["usage"]["completion_tokens"] <= 1
    llama.close()
    assert list(Completion(path, "def", max_tokens=1, threads=1)) is not None


def test_a_session_still_works_beside_a_model(model: Path) -> None:
    llama = bitexport.load(model, n_ctx=64)
    with Session(model, n_ctx=64) as session:
        assert session.feed([1, 2]).shape == (session.n_vocab,)
    llama.close()
