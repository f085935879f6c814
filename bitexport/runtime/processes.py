"""Which process a model belongs to. ggml's threads exist only in the process that started them."""

from __future__ import annotations

import os

from bitexport.errors import UsageError


class Owner:
    """Remembers the process in which something was opened.

    Args:
        what: the subject of the message, such as "this model".
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._pid = os.getpid()

    def here(self) -> bool:
        """Whether this is still that process, not a child forked from it."""
        return os.getpid() == self._pid

    def check(self) -> None:
        """Raise UsageError in a forked child, where waiting for the threads would never end."""
        if not self.here():
            raise UsageError(
                f"{self._what} was loaded in process {self._pid}, from which this one was forked without "
                "its threads; load it in this process, or start processes with the 'spawn' method of "
                "multiprocessing"
            )
