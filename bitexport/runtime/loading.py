"""Opens GGUF files with our libllama, after checking them, as an ordinary ``llama_cpp.Llama``."""

from __future__ import annotations

import atexit
import os
import threading
import warnings
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from bitexport.errors import BitexportWarning, GGUFError, UsageError
from bitexport.gguf.checks import check_foreign
from bitexport.gguf.diffusion_settings import diffusion_of
from bitexport.gguf.reader import MAGIC, read_gguf, refuse_folder
from bitexport.runtime import ggml, log
from bitexport.runtime.arguments import check_arguments
from bitexport.runtime.assumptions import assumptions
from bitexport.runtime.library import api, bind
from bitexport.runtime.limits import (
    check_own_context,
    check_threads,
    trained_context,
    warn_of_plain_decoding,
)
from bitexport.runtime.model import PathText, model_class
from bitexport.runtime.processes import lock_across_forks
from bitexport.runtime.remote import Workers, error_of
from bitexport.runtime.threads import ThreadPool, default_threads
from bitexport.runtime.trial import prove, refused
from bitexport.system.machine import free_memory
from bitexport.system.reading import open_regular
from bitexport.tokenizer.missing_pre_tokenizer import PRE_KEY

if TYPE_CHECKING:
    from llama_cpp import Llama

#: llama_cpp.Llama's own.
_DEFAULT_CONTEXT = 512

#: Sizes of the file that a trial needs: its pages and the repacked weights.
_TRIAL_SIZES = 2

#: llama.cpp's log does not say which model a message is about.
_one_at_a_time = lock_across_forks()

_open_models: weakref.WeakSet[Llama] = weakref.WeakSet()


@atexit.register
def _close_models() -> None:
    """Close models that are still open, while the modules that closing needs still exist."""
    for model in list(_open_models):
        if threading.active_count() > 1:  # daemon threads may still use them
            model.leave_open()
        else:
            model.close()


def load(
    path: str | os.PathLike[str],
    *,
    trial: bool = True,
    workers: str | Sequence[str] = (),
    layers: Sequence[int] = (),
    **kwargs: Any,
) -> Llama:
    """Open a GGUF file as a ``llama_cpp.Llama`` on our libraries. See :func:`bitexport.load`."""
    given = kwargs.pop("kv_overrides", None) or {}
    if layers and not workers:
        raise UsageError("layers says how to divide a model among workers, and there are none; give workers")
    remote = Workers(workers) if workers else None
    with ExitStack() as on_failure:
        if remote is not None:
            on_failure.callback(remote.close)
        trial = trial and (remote is None or can_try(path))
        file, overrides = checked_file(path, given, vocab_only=bool(kwargs.get("vocab_only")), trial=trial)
        is_for_blocks = not kwargs.get("vocab_only") and diffusion_of(read_gguf(file)) is not None
        if overrides:
            kwargs["kv_overrides"] = overrides
        _complete_arguments(file, kwargs)
        if remote is not None:
            _refuse_other_placement(kwargs)
            n_ctx = kwargs.get("n_ctx", _DEFAULT_CONTEXT) or trained_context(file)
            kwargs.update(workers=remote, placement=remote.place(file, layers, n_ctx))
        with _one_at_a_time:
            model = _open(file, kwargs, remote)
        on_failure.pop_all()
    if is_for_blocks:
        warn_of_plain_decoding(path)
    for message in model.template_warnings:
        warnings.warn(message, BitexportWarning, stacklevel=3)
    pool = ThreadPool(model.ctx, max(kwargs["n_threads"], kwargs["n_threads_batch"]))
    model.use(pool)
    _open_models.add(model)
    return model


def _refuse_other_placement(kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments of llama_cpp.Llama that place layers, as workers do."""
    for name in ("n_gpu_layers", "tensor_split", "split_mode", "main_gpu"):
        if name in kwargs:
            raise UsageError(f"{name} and workers exclude each other; use layers to divide the model")


def _complete_arguments(file: Path, kwargs: dict[str, Any]) -> None:
    """Check the arguments of llama_cpp.Llama, and add our defaults."""
    bind()
    ggml.cpu_tier()
    check_arguments(read_gguf(file), kwargs)
    kwargs.setdefault("verbose", False)
    if not any(kwargs.get(name) for name in ("embedding", "type_k", "type_v")):
        # llama.cpp's own default, which llama-cpp-python turns off: the operation that our attention computes
        kwargs.setdefault("flash_attn", True)
    if kwargs.get("n_ctx") == 0 and not kwargs.get("vocab_only"):
        check_own_context(file)
    for threads in ("n_threads", "n_threads_batch"):
        kwargs[threads] = kwargs.get(threads) or default_threads()
        check_threads(kwargs[threads])
    if kwargs.get("lora_path") is not None:
        kwargs["lora_path"] = PathText(kwargs["lora_path"])


def _open(file: Path, kwargs: Mapping[str, Any], workers: Workers | None) -> Llama:
    """The model of a checked file."""
    log.clear()
    try:
        model = model_class()(PathText(file), **kwargs)
    except ValueError as error:  # llama-cpp-python raises it when libllama returns a null pointer
        reason = str(error)
        raise error_of(workers, lambda: load_error(file, reason)) from error
    if kwargs.get("lora_path") and not model._lora_adapter:  # a null pointer, which llama-cpp-python misses
        reason = log.reason("libllama gave no reason")
        model.close()
        raise GGUFError(f"{kwargs['lora_path']} cannot be used with {file}: {reason}; make one of this model")
    return model


def checked_file(
    path: str | os.PathLike[str],
    given: Mapping[str, Any] = MappingProxyType({}),
    *,
    vocab_only: bool = False,
    trial: bool = True,
) -> tuple[Path, dict[str, Any]]:
    """Check that a path is a GGUF file that libllama can open without crashing; see :func:`prove`.

    Warns about everything that is assumed; see :func:`bitexport.runtime.assumptions.assumptions`.

    Args:
        path: the file.
        given: metadata overrides from the caller.
        vocab_only: only the vocabulary will be used.
        trial: try a file that is not proven in a child process.

    Returns:
        The path, and all metadata overrides: ``given`` and those that had to be assumed.

    Raises:
        GGUFError: the file is missing, damaged, or not GGUF.
        UnsupportedError: it is of another project, and has to be converted first.
        TokenizerError: its pre-tokenizer is missing and unknown.
    """
    file, overrides, messages = examined_file(path, given, vocab_only=vocab_only, trial=trial)
    for message in messages:
        warnings.warn(message, BitexportWarning, stacklevel=3)
    return file, overrides


def examined_file(
    path: str | os.PathLike[str],
    given: Mapping[str, Any] = MappingProxyType({}),
    *,
    vocab_only: bool = False,
    trial: bool = True,
) -> tuple[Path, dict[str, Any], list[str]]:
    """Like :func:`checked_file`, but returns the warnings as its third value."""
    file = Path(path)
    refuse_folder(file)
    try:
        with open_regular(file) as stream:
            magic = stream.read(len(MAGIC))
    except OSError as error:
        reason = error.strerror or "cannot be read"
        reason = reason[0].lower() + reason[1:]
        raise GGUFError(f"{file}: {reason}; give the path of a GGUF file") from error
    if magic != MAGIC:
        raise GGUFError(
            f"{file} starts with {magic!r}, not {MAGIC!r}, so it is not GGUF; make one with "
            "`bitexport convert`"
        )
    header = read_gguf(file)
    check_foreign(header)
    prove(header, vocab_only=vocab_only, trial=trial)
    if PRE_KEY in given:
        return file, dict(given), []
    overrides, messages = assumptions(header)
    return file, {**given, **overrides}, messages


def can_try(path: str | os.PathLike[str]) -> bool:
    """Whether this machine has memory to try a file alone, which workers are to run because it is large."""
    free = free_memory()
    size = sum(part.stat().st_size for part in read_gguf(os.fspath(path)).parts)
    return free is None or _TRIAL_SIZES * size < free


def load_error(file: Path, default: str) -> GGUFError:
    """The error for a file that libllama rejected: damage that our reader finds, or libllama's own message.

    Args:
        file: the file.
        default: the message if libllama logged none.
    """
    return damage(file, log.reason(default))


def damage(file: Path, reason: str) -> GGUFError:
    """The error for a file that libllama rejected for this reason; our reader may find a better one."""
    try:
        read_gguf(file)
    except GGUFError as error:
        return error
    return refused(file, reason)


def check_model(path: str | os.PathLike[str], *, trial: bool) -> None:
    """Check that libllama's graph finds all its hyper-parameters and exactly its tensors in a GGUF file.

    No tensor data is read in this process.

    Args:
        path: the file.
        trial: try a file that is not proven in a child process first; not needed for one that we wrote.

    Raises:
        GGUFError: it does not; the message is libllama's.
        NativeLibraryError: our library is missing.
    """
    file, _ = checked_file(path, trial=trial)
    llama_cpp = api()
    ggml.cpu_tier()
    params = llama_cpp.llama_model_default_params()
    params.no_alloc = True
    params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
    log.clear()
    model = llama_cpp.llama_model_load_from_file(os.fsencode(file), params)
    if not model:
        raise load_error(file, "its graph and its tensors do not match")
    llama_cpp.llama_model_free(model)
