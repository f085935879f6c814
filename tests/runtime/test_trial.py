"""Files from elsewhere are tried once in a child process, whose death is an error of one line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import bitexport
from bitexport.errors import GGUFError, NativeLibraryError
from bitexport.gguf.reader import read_gguf
from bitexport.runtime import proofs, trial
from bitexport.runtime.session import Session
from bitexport.runtime.trial import VARIABLE, run_trial, try_file
from tests.support.cli import one_line
from tests.support.gguf_files import rewritten

Maker = Callable[..., Path]


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def foreign(gguf_of: Maker, tmp_path: Path) -> Path:
    """A file that no conversion on this machine wrote."""
    return Path(shutil.copy(gguf_of("packed-multiply"), tmp_path / "foreign.gguf"))


def without_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, every trial fails, because there is no Python to run it."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")


def opens(path: Path) -> None:
    Session(path, n_ctx=16).close()
    bitexport.load(path, n_ctx=16).close()


def test_a_file_from_elsewhere_is_tried_once(
    foreign: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens(foreign)
    assert proofs.identity([foreign]) in {proof.name for proof in cache.iterdir()}
    without_trials(monkeypatch)
    opens(foreign)
    monkeypatch.setattr(proofs, "_proven", set())  # as in a new process
    opens(foreign)


def test_a_change_needs_another_trial(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opens(foreign)
    status = foreign.stat()
    data = bytearray(foreign.read_bytes())
    data[-1] ^= 1
    foreign.write_bytes(data)
    os.utime(foreign, ns=(status.st_atime_ns, status.st_mtime_ns))
    without_trials(monkeypatch)
    with pytest.raises(GGUFError, match=r"cannot be tried in a separate process: /nowhere/python does not"):
        opens(foreign)


def test_a_library_that_cannot_be_loaded(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example while it is built: nothing is wrong with the file."""
    (tmp_path / "libllama.so").write_bytes(b"not yet")
    monkeypatch.setattr(trial, "library_file", lambda _name: tmp_path / "libllama.so")
    with pytest.raises(NativeLibraryError, match=r"OSError: .*libllama.so: .*; build the libraries again"):
        try_file(read_gguf(foreign))


def test_what_convert_wrote_is_not_tried(
    checkpoint_of: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitexport.convert import convert

    convert(checkpoint_of("packed-multiply"), tmp_path / "ours.gguf", embed_type="f16")
    without_trials(monkeypatch)
    opens(tmp_path / "ours.gguf")
    # whereas a conversion of just any file proves nothing
    convert(tmp_path / "ours.gguf", tmp_path / "again.gguf", type="f16")
    with pytest.raises(GGUFError, match="cannot be tried"):
        opens(tmp_path / "again.gguf")


def test_the_variable_turns_trials_off(foreign: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_trials(monkeypatch)
    bitexport.load(foreign, n_ctx=16, trial=False).close()
    monkeypatch.setenv(VARIABLE, "0")
    opens(foreign)
    assert not cache.exists()  # nothing was proven


def test_a_cache_that_cannot_be_written(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    opens(foreign)


def test_a_vocabulary_alone_proves_nothing(foreign: Path, cache: Path) -> None:
    bitexport.load(foreign, vocab_only=True).close()
    assert not cache.exists()


def test_proofs_do_not_pile_up(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs, "_MOST", 10)
    for number in range(25):
        proofs.remember(f"{number:064x}")
    assert 5 <= len(list(cache.iterdir())) <= 10
    assert proofs.is_proven(f"{24:064x}")


def test_the_identity_of_a_split_model_has_all_parts(foreign: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"x")
    assert proofs.identity([foreign]) != proofs.identity([foreign, other])
    assert proofs.identity([foreign]) == proofs.identity(read_gguf(foreign).parts)


def test_the_command_line_prints_one_line(
    foreign: Path, run_cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    assert run_cli("run", foreign, "--prompt", "a", "--max-tokens", "1").returncode == 0
    bad = rewritten(foreign, foreign.with_name("bad.gguf"), drop=["bitnet-b1.58.block_count"])
    for command in (["run", bad, "--prompt", "a"], ["bench", bad, "--gen-tokens", "1"]):
        line = one_line(run_cli(*command), 1)
        assert "bad.gguf cannot be loaded: error loading model hyperparameters: key not found" in line


@pytest.mark.parametrize(
    ("architecture", "metadata", "drop", "message"),
    [
        # divides by the number of heads
        (
            "phimoe",
            {"phimoe.attention.head_count": 0},
            [],
            r"ends llama.cpp \(SIGFPE: without a message\), as a trial",
        ),
        (
            "llama",
            {"tokenizer.ggml.model": "t5", "tokenizer.ggml.add_bos_token": True},
            ["tokenizer.ggml.bos_token_id"],
            r"ends llama.cpp \(SIGABRT: llama-vocab.cpp:\d+: GGML_ASSERT\(special_bos_id != LLAMA_",
        ),
        (
            "llama",
            {"llama.block_count": 3},
            [],
            r"cannot be loaded: check_tensor_dims: tensor 'blk.2.attn_norm.weight'",
        ),
    ],
)
def test_how_a_trial_ends(
    gguf_of: Maker,
    tmp_path: Path,
    architecture: str,
    metadata: dict[str, int | str],
    drop: list[str],
    message: str,
) -> None:
    """llama.cpp's last words reach the user. The checks that would refuse these files are left out."""
    source = gguf_of("packed-multiply", architecture="llama")
    path = rewritten(source, tmp_path / "bad.gguf", architecture=architecture, metadata=metadata, drop=drop)
    with pytest.raises(GGUFError, match=message):
        try_file(read_gguf(path))


def test_a_trial_has_a_limit_on_its_time(foreign: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run_trial(foreign, 4 << 30, 0.001, vocab_only=False)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not enforce the limit")
def test_a_trial_has_a_limit_on_its_memory(foreign: Path) -> None:
    done = run_trial(foreign, 16 << 20, 60, vocab_only=False)
    assert done.returncode != 0


def test_failures_are_not_remembered(foreign: Path, tmp_path: Path, cache: Path) -> None:
    path = rewritten(foreign, tmp_path / "bad.gguf", rename=lambda name: None if "attn_q" in name else name)
    for _ in range(2):
        with pytest.raises(GGUFError, match=r"cannot be loaded: .*'blk\.0\.attn_q\.weight' not found"):
            opens(path)
    assert not cache.exists() or proofs.identity([path]) not in {proof.name for proof in cache.iterdir()}
