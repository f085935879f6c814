"""Opens GGUF files with our libllama, after checking them, as an ordinary ``llama_cpp.Llama``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from bitexport.errors import BitexportWarning, GGUFError, UsageError
from bitexport.gguf.checks import check_hyperparameters
from bitexport.gguf.reader import MAGIC, read_gguf
from bitexport.runtime import ggml, log
from bitexport.runtime.assumptions import assumptions
from bitexport.runtime.library import bind
from bitexport.runtime.limits import check_threads
from bitexport.runtime.threads import ThreadPool, default_threads
from bitexport.tokenizer.missing_pre_tokenizer import PRE_KEY

if TYPE_CHECKING:
    from llama_cpp import Llama


def load(path: str | os.PathLike[str], **kwargs: Any) -> Llama:
    """Open a GGUF file as a ``llama_cpp.Llama`` on our libraries. See :func:`bitexport.load`."""
    given = kwargs.pop("kv_overrides", None) or {}
    file, overrides = checked_file(path, given)
    if overrides:
        kwargs["kv_overrides"] = overrides
    llama_cpp = bind()
    ggml.cpu_tier()
    kwargs.setdefault("verbose", False)
    for threads in ("n_threads", "n_threads_batch"):
        kwargs[threads] = kwargs.get(threads) or default_threads()
        check_threads(kwargs[threads])
    log.clear()
    try:
        model = llama_cpp.Llama(str(file), **kwargs)
    except ValueError as error:  # llama-cpp-python raises it when libllama returns a null pointer
        raise load_error(file, str(error)) from error
    except Exception as error:
        if type(error).__module__ != "jinja2.exceptions":  # it compiles the chat template
            raise
        raise GGUFError(
            f"{file}: the chat template is damaged ({error}); correct tokenizer_config.json or "
            "chat_template.jinja and convert the checkpoint again"
        ) from error
    if kwargs.get("embedding") and model.pooling_type() != llama_cpp.LLAMA_POOLING_TYPE_NONE:
        model.generate = _no_generation(file)
    pool = ThreadPool(model.ctx, max(kwargs["n_threads"], kwargs["n_threads_batch"]))
    model._stack.callback(pool.close)  # runs before the context is freed: callbacks run last in, first out
    return model


def _no_generation(file: Path) -> Any:
    """A replacement for ``Llama.generate``, because a context that pools embeddings has no logits."""

    def refuse(*_arguments: Any, **_named: Any) -> Any:
        raise UsageError(
            f"{file} was loaded for embeddings; to generate text, load it without embedding=True"
        )

    return refuse


def checked_file(
    path: str | os.PathLike[str], given: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Path, dict[str, Any]]:
    """Check that a path is a GGUF file that libllama can open without crashing.

    Warns about everything that is assumed; see :func:`bitexport.runtime.assumptions.assumptions`.

    Args:
        path: the file.
        given: metadata overrides from the caller.

    Returns:
        The path, and all metadata overrides: ``given`` and those that had to be assumed.

    Raises:
        GGUFError: the file is missing, damaged, or not GGUF.
        TokenizerError: its pre-tokenizer is missing and unknown.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            magic = stream.read(len(MAGIC))
    except OSError as error:
        reason = (error.strerror or "cannot be read").lower()
        raise GGUFError(f"{file}: {reason}; give the path of a GGUF file") from error
    if magic != MAGIC:
        raise GGUFError(
            f"{file} starts with {magic!r}, not {MAGIC!r}, so it is not GGUF; make one with "
            "`bitexport convert`"
        )
    header = read_gguf(file)
    check_hyperparameters(header)
    if PRE_KEY in given:
        return file, dict(given)
    overrides, messages = assumptions(header)
    for message in messages:
        warnings.warn(message, BitexportWarning, stacklevel=3)
    return file, {**given, **overrides}


def load_error(file: Path, default: str) -> GGUFError:
    """The error for a file that libllama rejected: damage that our reader finds, or libllama's own message.

    Args:
        file: the file.
        default: the message if libllama logged none.
    """
    reason = log.reason(default)
    try:
        read_gguf(file)
    except GGUFError as error:
        return error
    # messages of our own code in libllama end with advice
    advice = "" if "again" in reason else "; convert the checkpoint again, or see `bitexport inspect`"
    return GGUFError(f"{file} cannot be loaded: {reason}{advice}")
