"""Handles termination signals like Ctrl-C, so that incomplete output is removed before the process ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Signals that by default end the process at once: from ``kill``, and from a terminal that is closed.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Terminated(KeyboardInterrupt):
    """The process is asked to end by such a signal, which an interactive command must not take for Ctrl-C."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raise :class:`Terminated`, a ``KeyboardInterrupt``, for these signals while the ``with`` block runs."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    # nohup ignores SIGHUP, which must stay ignored
    handled = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in handled:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)
