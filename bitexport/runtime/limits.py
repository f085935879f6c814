"""Rejects requests that would make libllama crash or the system kill the process."""

from __future__ import annotations

import os

from bitexport.errors import UsageError
from bitexport.gguf.reader import read_gguf
from bitexport.runtime.ggml import processors

#: The context that any model may be run with, even if it was trained with less, for benchmarks.
SHORT_CONTEXT = 4096


def check_threads(count: int) -> None:
    """Raise UsageError unless there are 1 to 16 threads, or up to eight per processor."""
    most = max(16, 8 * processors())
    if not 1 <= count <= most:
        raise UsageError(f"{count} threads were requested; expected 1 to {most} on {processors()} processors")


def checked_context(path: str | os.PathLike[str], tokens: int) -> int:
    """Check a requested context against the context that the model was trained with.

    Args:
        path: the GGUF file.
        tokens: the context; 0 for the model's own, up to :data:`SHORT_CONTEXT`: enough for a try, without the
            memory that a context of 128k tokens takes.

    Returns:
        The context to open.

    Raises:
        UsageError: it is negative, or larger than both the model's and :data:`SHORT_CONTEXT`.
        GGUFError: the file is damaged.
    """
    metadata = read_gguf(os.fspath(path)).metadata
    trained = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    own = trained if isinstance(trained, int) and trained > 0 else SHORT_CONTEXT
    most = max(own, SHORT_CONTEXT)
    if not 0 <= tokens <= most:
        raise UsageError(
            f"a context of {tokens} tokens was requested; expected at most {most} for this model"
        )
    return tokens or min(own, SHORT_CONTEXT)


def check_text(option: str, text: str) -> None:
    """Raise UsageError for text with bytes that are not UTF-8, which Python represents as surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{option} is not UTF-8 at character {error.start}; give valid UTF-8 text"
        ) from error
