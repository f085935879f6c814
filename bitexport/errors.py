"""Every failure that bitexport can name.

One class a kind of failure; the command line turns it into one line and an exit code, and a Python caller
catches :class:`BitexportError`. A message says what is wrong with the value, what was expected, and what to
do next, in that order.
"""

from __future__ import annotations


class BitexportError(Exception):
    """A failure we can name. ``exit_code`` is what the command line returns for it."""

    exit_code = 1


class CheckpointError(BitexportError):
    """The source checkpoint cannot be read, or holds something that no family or packing claims.

    Attributes:
        sign: where a single tensor is to blame, its name in :data:`bitexport.health.SIGNS`.
    """

    sign = "unreadable"


class NotFiniteError(CheckpointError):
    """A weight is NaN or infinite."""

    sign = "not-finite"


class ScaleError(CheckpointError):
    """A scale is zero, negative, NaN or infinite."""

    sign = "bad-scale"


class UnsupportedError(BitexportError):
    """The model is sound, but what was asked for cannot hold or run it."""


class TokenizerError(BitexportError):
    """The tokenizer is unknown, incomplete, or tokenizes differently on the two sides."""


class GGUFError(BitexportError):
    """A GGUF file is damaged or holds something this version cannot read."""


class OutputError(BitexportError):
    """The output cannot be written: it exists already, the disk is full, the folder is missing."""


class NativeLibraryError(BitexportError):
    """Our libllama is missing, cannot be loaded, or a foreign one is loaded already."""


class UsageError(BitexportError):
    """The call itself is wrong: an option's value, or options that exclude each other."""

    exit_code = 2


class CheckFailed(BitexportError):  # noqa: N818 (nothing went wrong; the answer is no)
    """A check ran to its end and the result is below its threshold."""

    exit_code = 3


class BitexportWarning(UserWarning):
    """Something was assumed that the caller should know; the command line prints it as a warning."""
