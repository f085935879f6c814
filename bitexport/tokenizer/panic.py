"""Turns panics of the tokenizers library into :class:`TokenizerError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bitexport.errors import TokenizerError


@contextmanager
def panics_named() -> Iterator[None]:
    """Raise TokenizerError when the tokenizers library panics; also a decorator, ``@panics_named()``.

    The library is written in Rust. It may read a damaged tokenizer.json without an error and then panic at
    the first text, which Python sees as a ``BaseException`` that is not an ``Exception``.

    Raises:
        TokenizerError: the library panicked.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # its module cannot be imported
            raise
        raise TokenizerError(
            f"tokenizer.json: the tokenizers library panicked ({error}); expected a consistent tokenizer: "
            "download it again"
        ) from error
