"""Ctrl-C and SIGTERM as a request that training honours after the step in progress."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Within these seconds a second signal counts as the first one: torchrun forwards the signal that the terminal
# has already sent.
_SAME_SIGNAL = 3.0


class StopRequest:
    """Records the first signal in ``asked``; a later one raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.asked = False
        self._asked_at = 0.0  # time.monotonic(), seconds

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle both signals inside the block; in the main thread only."""
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, *_: Any) -> None:
        now = time.monotonic()
        if self.asked and now - self._asked_at > _SAME_SIGNAL:
            raise KeyboardInterrupt
        self.asked = True
        self._asked_at = now
