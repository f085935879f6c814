"""Tries a GGUF file in a child process, because llama.cpp may abort, crash or hang on it.

The child loads the model, reads its vocabulary and evaluates a few tokens (native/llama_cpp/loader/trial.h),
with limits on memory and time. It is the standard library's Python with our libllama and nothing else. A file
that passes is remembered, see :mod:`bitexport.runtime.proofs`; so is what ``bitexport convert`` writes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from bitexport.errors import BitexportError, GGUFError, NativeLibraryError
from bitexport.gguf.checks import check_file
from bitexport.gguf.reader import GGUFFile
from bitexport.runtime import ggml, log, proofs
from bitexport.runtime.levels import cpu_library_file
from bitexport.runtime.threads import default_threads
from bitexport.system.native_files import library_file

#: ``BITEXPORT_TRIAL=0`` turns trials off.
VARIABLE = "BITEXPORT_TRIAL"

#: Address space for the mapped file and its repacked weights, in sizes of the file; and for libraries, the
#: stacks of threads, and buffers, in bytes.
_SIZES = 3
_SPARE_MEMORY = 1 << 30
_SHORTEST_SECONDS = 10.0
_SLOWEST_BYTES_PER_SECOND = 20e6

#: Fewer threads than a run may use: each thread reserves address space, and a few tokens need no more.
_MOST_THREADS = 4

#: What libllama prints before an assertion's message.
_LAST_WORDS = "llama.cpp ends the process: "

_PROGRAM = """
import ctypes, os, sys
cpu, library, model, memory, threads, vocab_only = sys.argv[1:]
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
except (ImportError, OSError, ValueError):
    pass  # not on this system
cpu_library = ctypes.CDLL(cpu)  # libllama finds the one that is already loaded
try_model = ctypes.CDLL(library).bitexport_try_model
sys.exit(try_model(os.fsencode(model), int(threads), ctypes.c_bool(int(vocab_only))))
"""


def prove(file: GGUFFile, *, vocab_only: bool = False, trial: bool = True) -> None:
    """Make sure that our libllama can run a file, by a proof from earlier, or by checks and a trial.

    Args:
        file: its header.
        vocab_only: only its vocabulary will be used.
        trial: whether to try it; otherwise it is only checked.

    Raises:
        GGUFError: it cannot; the message has llama.cpp's last words.
        NativeLibraryError: as :func:`try_file`.
    """
    name = proofs.identity(file.parts)
    if proofs.is_proven(name):
        return
    check_file(file)
    if not trial or os.environ.get(VARIABLE) == "0":
        return
    try_file(file, vocab_only=vocab_only)
    if not vocab_only:
        proofs.remember(name)


def trust(file: GGUFFile) -> None:
    """Remember a file that this machine made itself, after the same checks but without a trial.

    Raises:
        GGUFError: a check failed.
    """
    check_file(file)
    proofs.remember(proofs.identity(file.parts))


def try_file(file: GGUFFile, *, vocab_only: bool = False) -> None:
    """Let libllama try a file in a child process.

    Raises:
        GGUFError: it failed; the message has llama.cpp's last words.
        NativeLibraryError: the child process could not load our libraries, or the environment forces kernels
            that this CPU lacks.
    """
    size = sum(part.stat().st_size for part in file.parts)
    seconds = _SHORTEST_SECONDS + size / _SLOWEST_BYTES_PER_SECOND
    try:
        done = run_trial(file.path, _SIZES * size + _SPARE_MEMORY, seconds, vocab_only=vocab_only)
    except subprocess.TimeoutExpired:
        raise GGUFError(
            f"{file.path}: llama.cpp did not finish a trial within {seconds:.0f} s; the file is damaged, or "
            f"this machine is busy: try again, or set {VARIABLE}=0 to skip the trial"
        ) from None
    except OSError as error:
        raise GGUFError(
            f"{file.path} cannot be tried in a separate process: {sys.executable or 'Python'} does not start "
            f"({error.strerror}); set {VARIABLE}=0 to skip the trial"
        ) from error
    if done.returncode != 0:
        ggml.cpu_tier()  # a forced tier that this CPU lacks is not the file's fault
        lines = done.stderr.decode(errors="replace").splitlines()
        raise _error(file.path, done.returncode, [line.strip() for line in lines if line.strip()])


def run_trial(
    path: Path, memory: int, seconds: float, *, vocab_only: bool
) -> subprocess.CompletedProcess[bytes]:
    """Let libllama try a file in a child process, without any checks before.

    Args:
        path: the GGUF file.
        memory: the limit on the child's address space in bytes.
        seconds: the limit on its time.
        vocab_only: only try the vocabulary.

    Returns:
        How it ended: 0 for success, 1 for an error of libllama, negative for a signal; stderr has its errors.

    Raises:
        subprocess.TimeoutExpired: it took too long, and was killed.
        OSError: Python cannot be started.
    """
    threads = min(default_threads(), _MOST_THREADS)
    arguments = (cpu_library_file(), library_file("llama"), path, memory, threads, int(vocab_only))
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", _PROGRAM, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=seconds,
        check=False,
        env={**os.environ, "GGML_NO_BACKTRACE": "1", "MALLOC_ARENA_MAX": "1"},
    )


def refused(path: Path, reason: str) -> GGUFError:
    """The error for a file that libllama rejected with a message."""
    # messages of our own code in libllama end with advice
    advice = "" if "again" in reason else "; convert the checkpoint again, or see `bitexport inspect`"
    return GGUFError(f"{path} cannot be loaded: {reason}{advice}")


def _error(path: Path, code: int, lines: list[str]) -> BitexportError:
    if lines and lines[0].startswith("Traceback"):  # of Python, before libllama saw the file
        return NativeLibraryError(
            f"{path} cannot be tried in a separate process: {lines[-1]}; build the libraries again with "
            "`make native`"
        )
    if code > 0:
        return refused(path, log.reason_of(lines, "libllama gave no reason"))
    name = signal.Signals(-code).name
    words = log.without_folders(lines[-1]).removeprefix(_LAST_WORDS) if lines else "without a message"
    return GGUFError(
        f"{path} ends llama.cpp ({name}: {words}), as a trial in a separate process shows; the file is "
        "damaged or not for this version: convert or download it again"
    )
