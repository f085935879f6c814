"""Rejects requests that would make libllama crash or the system kill the process."""

from __future__ import annotations

import os

from bitexport.errors import UsageError
from bitexport.gguf.reader import GGUFFile, read_gguf
from bitexport.runtime.ggml import processors

#: The context that any model may be run with, even if it was trained with less, for benchmarks.
SHORT_CONTEXT = 4096


def check_threads(count: int) -> None:
    """Raise UsageError unless there are 1 to 16 threads, or up to eight per processor."""
    most = max(16, 8 * processors())
    if not 1 <= count <= most:
        raise UsageError(f"{count} threads were requested; expected 1 to {most} on {processors()} processors")


def check_context(path: str | os.PathLike[str], tokens: int) -> None:
    """Check a requested context against the context that the model was trained with.

    Raises:
        UsageError: it is negative, or larger than both the model's and :data:`SHORT_CONTEXT`.
        GGUFError: the file is damaged.
    """
    check_trained_context(read_gguf(os.fspath(path)), tokens)


def check_trained_context(file: GGUFFile, tokens: int) -> None:
    """Like :func:`check_context`, for a file whose header has been read."""
    trained = file.metadata.get(f"{file.metadata.get('general.architecture')}.context_length")
    most = max(trained, SHORT_CONTEXT) if isinstance(trained, int) else SHORT_CONTEXT
    if not 0 <= tokens <= most:
        raise UsageError(
            f"a context of {tokens} tokens was requested; expected at most {most} for this model"
        )


def check_text(option: str, text: str) -> None:
    """Raise UsageError for text with bytes that are not UTF-8, which Python represents as surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{option} is not UTF-8 at character {error.start}; give valid UTF-8 text"
        ) from error
