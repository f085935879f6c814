"""The errors that bitexport raises on purpose.

One class per kind of failure; the command line turns it into one line and an exit code, and a Python caller
catches :class:`BitexportError`. A message says what is wrong with the value, what was expected, and what to
do next, in that order.
"""

from __future__ import annotations


class BitexportError(Exception):
    """A failure with a known cause. The command line exits with ``exit_code``.

    Attributes:
        sign: if a single tensor is the cause, the key of the problem in :data:`bitexport.health.SIGNS`.
    """

    exit_code = 1
    sign = "unreadable"


class CheckpointError(BitexportError):
    """The source checkpoint cannot be read, or contains something that no family or packing accepts."""


class NotFiniteError(CheckpointError):
    """A weight is NaN or infinite."""

    sign = "not-finite"


class ScaleError(CheckpointError):
    """A scale is zero, negative, NaN or infinite."""

    sign = "bad-scale"


class UnsupportedError(BitexportError):
    """The model is valid, but the requested type or runtime cannot store or run it."""


class TokenizerError(BitexportError):
    """The tokenizer is unknown, incomplete, or tokenizes differently on the two sides."""


class GGUFError(BitexportError):
    """A GGUF file is damaged or contains something that this version cannot read."""


class GGUFScaleError(GGUFError):
    """A scale in a GGUF file is negative, NaN or infinite, or zero where it must not be."""

    sign = "bad-scale"


class OutputError(BitexportError):
    """The output cannot be written: it already exists, the disk is full, or the folder is missing."""


class HubError(BitexportError):
    """A model cannot be fetched from the hub, or sent to it."""


class NativeLibraryError(BitexportError):
    """Our libllama is missing or cannot be loaded, or another one is already loaded."""


class UsageError(BitexportError):
    """The call itself is wrong: an option has an invalid value, or options exclude each other."""

    exit_code = 2


class CheckFailed(BitexportError):  # noqa: N818 (a negative result, not a malfunction)
    """A check ran to completion and its result is below the threshold.

    Attributes:
        shown: whether the command's human-readable result says the same, so that a terminal needs it once.
    """

    shown = False

    exit_code = 3


class BitexportWarning(UserWarning):
    """An assumption that the caller should know about; the command line prints it as a warning."""
