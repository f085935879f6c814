"""Being asked to stop while work must go on until it can stop without loss."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Seconds in which a second signal is the first one again: torchrun passes on what the terminal sent already.
_SAME_SIGNAL = 3.0


class StopRequest:
    """Ctrl-C and SIGTERM, noted in ``asked``; the one that follows later raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.asked, self._since = False, 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals while the block lasts; in the main thread only."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, *_: Any) -> None:
        if self.asked and time.monotonic() - self._since > _SAME_SIGNAL:
            raise KeyboardInterrupt
        self.asked, self._since = True, time.monotonic()
