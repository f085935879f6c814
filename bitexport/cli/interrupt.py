"""Being asked to stop: like Ctrl-C, so that whatever is half-written is removed on the way out."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: what asks a program to stop, and ends it on the spot otherwise: ``kill``, and a terminal that goes away.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def terminable() -> Iterator[None]:
    """Turn the signals that ask for an end into ``KeyboardInterrupt`` while the ``with`` block runs."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # under nohup, one of them is ignored, and stays so
    taken = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
