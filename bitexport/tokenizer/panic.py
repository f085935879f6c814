"""The tokenizers library's panics, as errors that have a name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bitexport.errors import TokenizerError


@contextmanager
def panics_named() -> Iterator[None]:
    """Turn a panic of the tokenizers library into an error; also as a decorator, ``@panics_named()``.

    The library is written in Rust. Where a damaged tokenizer.json was read without complaint, its code may
    panic at the first text, which arrives as an exception that is no ``Exception``.

    Raises:
        TokenizerError: it panicked.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # its module cannot be imported
            raise
        raise TokenizerError(
            f"tokenizer.json: the tokenizers library broke down over it ({error}); expected a tokenizer "
            "whose parts fit each other: download it again"
        ) from error
