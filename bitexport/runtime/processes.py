"""Which process a model belongs to. ggml's threads exist only in the process that started them."""

from __future__ import annotations

import os
import threading

from bitexport.errors import UsageError


def lock_across_forks() -> threading.RLock:
    """A lock that is free in a forked child: a fork waits until no other thread holds it.

    So a child does not wait for threads that it lacks, nor find half-done what the lock guards. A fork takes
    the locks that were made last first, so a lock that is taken while another is held must be made before it.
    """
    lock = threading.RLock()  # the thread that forks may hold it
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock


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
