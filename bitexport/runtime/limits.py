"""What may be asked of a model before libllama is: beyond it the process would be killed, not answered."""

from __future__ import annotations

import os

from bitexport.errors import UsageError
from bitexport.gguf.reader import read_gguf
from bitexport.runtime.ggml import processors

#: Tokens that any model may be run with, whatever it was trained with: measuring needs no sense.
SHORT_CONTEXT = 4096


def check_threads(count: int) -> None:
    """Raise UsageError for fewer than one thread, or more than eight a processor (sixteen always pass)."""
    most = max(16, 8 * processors())
    if not 1 <= count <= most:
        raise UsageError(f"{count} threads were asked for; expected 1 to {most} on {processors()} processors")


def check_context(path: str | os.PathLike[str], tokens: int) -> None:
    """Raise UsageError for more than the model was trained with, unless it is within :data:`SHORT_CONTEXT`.

    Raises:
        GGUFError: the file is damaged.
    """
    metadata = read_gguf(os.fspath(path)).metadata
    trained = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    most = max(trained, SHORT_CONTEXT) if isinstance(trained, int) else SHORT_CONTEXT
    if not 0 <= tokens <= most:
        raise UsageError(f"a context of {tokens} tokens was asked for; this model can be given up to {most}")


def check_text(option: str, text: str) -> None:
    """Raise UsageError for text made of bytes that are not UTF-8; Python passes them on as surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{option} is not UTF-8 at character {error.start}; give valid UTF-8 text"
        ) from error
