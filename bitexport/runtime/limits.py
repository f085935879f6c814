"""Rejects requests that would make libllama crash or the system kill the process."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bitexport.errors import BitexportWarning, UsageError
from bitexport.runtime.ggml import processors
from bitexport.system.machine import free_memory

if TYPE_CHECKING:
    from bitexport.gguf.reader import GGUFFile

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
    return context_within(trained_context(path), tokens)


def check_trained_context(file: GGUFFile, tokens: int) -> int:
    """Like :func:`checked_context`, for a file whose header has been read."""
    return context_within(_number(file.metadata, "context_length"), tokens)


def context_within(trained: int, tokens: int) -> int:
    """Like :func:`checked_context`, for a model that was trained with this context; 0 if it is unknown."""
    own = trained if trained > 0 else SHORT_CONTEXT
    most = max(own, SHORT_CONTEXT)
    if not 0 <= tokens <= most:
        raise UsageError(
            f"a context of {tokens} tokens was requested; expected at most {most} for this model"
        )
    return tokens or min(own, SHORT_CONTEXT)


def room_behind(prompt_tokens: int, context: int, option: str = "--ctx") -> int:
    """The tokens that fit behind a prompt.

    Args:
        prompt_tokens: how many the prompt has.
        context: the context in tokens.
        option: what sets it, for the message.

    Raises:
        UsageError: the prompt is empty, or fills the context.
    """
    if prompt_tokens == 0:
        raise UsageError("the prompt has no tokens; give a non-empty text")
    if prompt_tokens >= context:
        raise UsageError(
            f"the prompt has {prompt_tokens} tokens, but the context only {context}; shorten the prompt or "
            f"set a larger {option}"
        )
    return context - prompt_tokens


def check_own_context(path: str | os.PathLike[str]) -> None:
    """Check that there is memory for a cache of the context that the model was trained with.

    Raises:
        UsageError: there is not, as far as the numbers in the file tell.
        GGUFError: the file is damaged.
    """
    metadata = _metadata(path)
    context = _number(metadata, "context_length")
    needed = context * _number(metadata, "block_count") * cache_bytes(metadata)
    room = free_memory()
    if room is not None and needed > room:
        raise UsageError(
            f"n_ctx=0 is the model's own context, {context} tokens, whose cache takes about "
            f"{needed / 1e9:.0f} GB, and {room / 1e9:.0f} GB are free; give a smaller n_ctx"
        )


def cache_bytes(metadata: Mapping[str, Any]) -> int:
    """Bytes of one layer's keys and values of one token in float16, as far as the file tells."""
    heads = _number(metadata, "attention.head_count")
    head = _number(metadata, "embedding_length") // heads if heads else 0
    width = _number(metadata, "attention.key_length", head) + _number(
        metadata, "attention.value_length", head
    )
    return _number(metadata, "attention.head_count_kv", heads) * width * 2


def _number(metadata: Mapping[str, Any], key: str, default: int = 0) -> int:
    value = metadata.get(f"{metadata.get('general.architecture')}.{key}")
    return value if isinstance(value, int) else default


def trained_context(path: str | os.PathLike[str]) -> int:
    """The context that the model was trained with; 0 if the file does not say."""
    return _number(_metadata(path), "context_length")


def _metadata(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    from bitexport.gguf.reader import read_gguf  # slow to import, and `run` needs it for new files only

    return read_gguf(os.fspath(path)).metadata


def warn_of_long_context(path: str | os.PathLike[str], tokens: int) -> None:
    """Warn if a requested context is longer than the model was trained for."""
    warn_beyond(trained_context(path), tokens)


def warn_of_plain_decoding(path: str | os.PathLike[str]) -> None:
    """Warn that a model of block diffusion is decoded token by token."""
    warnings.warn(
        f"{path} is a model of block diffusion, decoded here as a plain one, token by token; "
        "`bitexport run` and bitexport.runtime.block_llama.decode_blocks decode it in blocks",
        BitexportWarning,
        stacklevel=4,
    )


def warn_beyond(trained: int, tokens: int) -> None:
    """Like :func:`warn_of_long_context`, for a model that was trained with this context; 0 if unknown."""
    if 0 < trained < tokens:
        warnings.warn(
            f"a context of {tokens} tokens is more than the {trained} that this model was trained for; text "
            f"beyond them is likely to be worse, so prefer --ctx {trained}",
            BitexportWarning,
            stacklevel=4,
        )


def check_text(option: str, text: str) -> None:
    """Raise UsageError for text with bytes that are not UTF-8, which Python represents as surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{option} is not UTF-8 at character {error.start}; give valid UTF-8 text"
        ) from error
