"""Ctrl-C while the program imports itself or ends, when nothing could catch a ``KeyboardInterrupt``."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # typing is slow to import, and this has to come first
if TYPE_CHECKING:
    import signal
    from types import FrameType
else:
    import _signal as signal  # so is signal, which imports enum; this is its part in C

_EXIT_CODE = 130


def end_on_interrupts() -> None:
    """From now on, Ctrl-C ends the process at once, with the message and the exit code of an interruption."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not in a shell's background job
        signal.signal(signal.SIGINT, _end)


def raise_interrupts() -> None:
    """From now on, Ctrl-C raises ``KeyboardInterrupt`` again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(_number: int, _frame: FrameType | None) -> None:
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(_EXIT_CODE)
