"""The default number of threads, and a thread pool that persists from token to token."""

from __future__ import annotations

import atexit
import ctypes
import functools
import math
import os
import threading
import weakref
from pathlib import Path

from bitexport.errors import NativeLibraryError
from bitexport.runtime.ggml import cpu_library, processors
from bitexport.runtime.processes import Owner
from bitexport.system.native_files import library_file

_TOPOLOGY = Path("/sys/devices/system/cpu")
_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def default_threads() -> int:
    """One thread per core that this process may use, within the container's CPU quota.

    Two hardware threads of one core share its multiply-add units and its memory path, so the second one adds
    nothing. With more threads than the quota allows, threads would wait for each other.
    """
    cores = physical_cores(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else processors()
    return max(1, min(cores, cpu_quota() or cores))


def physical_cores(cpus: set[int], topology: Path = _TOPOLOGY) -> int:
    """The number of cores of these processors; if the topology is unknown, each counts as a core."""
    return len({_siblings(topology, cpu) or str(cpu) for cpu in cpus})


def cpu_quota(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int | None:
    """The smallest CPU quota of this process's cgroups (v1 or v2) in processors, rounded up, or None.

    Args:
        cgroups: where the cgroups are mounted.
        membership: the file that says in which of them this process is.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    quotas = []
    # without that file, as in some sandboxes, the root is the container's
    for line in lines or ["0::/"]:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = cgroups / "cpu" if controllers else cgroups
        group = root / path.lstrip("/")
        # a container may see the host's path, of which it has only the root
        for folder in [group, *group.parents]:
            quotas.append(_quota_v1(folder) if controllers else _quota_v2(folder))
            if folder == root:
                break
    return min((max(1, math.ceil(quota)) for quota in quotas if quota is not None), default=None)


def _quota_v2(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(group: Path) -> float | None:
    try:
        quota = int((group / "cpu.cfs_quota_us").read_text())
        return None if quota < 0 else quota / int((group / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _siblings(topology: Path, cpu: int) -> str | None:
    try:
        return (topology / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return None


_running: weakref.WeakSet[ThreadPool] = weakref.WeakSet()


@atexit.register
def _end_threads() -> None:
    """End the threads of models that are still open: the libraries' cleanup crashes if threads still run."""
    for pool in list(_running):
        if pool.belongs_here():
            pool.in_use.acquire()  # for good: a daemon thread that goes on computing waits here instead
        pool.close()


class ThreadPool:
    """A pool of threads with which a llama.cpp context computes, until it is closed.

    Without a pool ggml starts new threads for every token, which slows down small models.

    Args:
        context: the ``llama_context`` pointer; it must outlive the pool, or :meth:`close` be called first.
        count: the number of threads, including the calling one; a context never uses more than its pool has.

    Attributes:
        in_use: hold it while the context computes.

    Raises:
        NativeLibraryError: the threads could not be started.
    """

    def __init__(self, context: int, count: int) -> None:
        self._owner = Owner("the thread pool")
        self._context = ctypes.c_void_p(context)
        self.in_use = threading.Lock()
        self._pool: int | None = _cpu().bitexport_new_threads(count)
        if not self._pool:
            raise NativeLibraryError(f"{count} threads could not be started; ask for fewer")
        _llama().llama_attach_threadpool(self._context, self._pool, None)
        _running.add(self)

    def belongs_here(self) -> bool:
        """Whether this process started the threads, not one that this one was forked from."""
        return self._owner.here()

    def close(self) -> None:
        """Detach the pool from the context and end its threads. Closing twice does nothing."""
        if self._pool:
            _llama().llama_detach_threadpool(self._context)
        self.end()

    def end(self) -> None:
        """End the threads of a pool that was replaced by another one.

        Call it only after the context has computed once with the new pool: ggml then pauses the old one.
        """
        # freeing it in a forked child would wait for threads that are not there
        if self._pool and self._owner.here():
            _cpu().ggml_threadpool_free(self._pool)
        self._pool = None


@functools.cache
def _cpu() -> ctypes.CDLL:
    library = cpu_library()
    library.bitexport_new_threads.argtypes = [ctypes.c_int]
    library.bitexport_new_threads.restype = ctypes.c_void_p
    library.ggml_threadpool_free.argtypes = [ctypes.c_void_p]
    library.ggml_threadpool_free.restype = None
    return library


@functools.cache
def _llama() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_file("llama")))
    library.llama_attach_threadpool.argtypes = [ctypes.c_void_p] * 3
    library.llama_attach_threadpool.restype = None
    library.llama_detach_threadpool.argtypes = [ctypes.c_void_p]
    library.llama_detach_threadpool.restype = None
    return library
