"""How many threads compute, and a pool of them that outlives a token."""

from __future__ import annotations

import atexit
import ctypes
import functools
import math
import os
import weakref
from pathlib import Path

from bitexport.errors import NativeLibraryError
from bitexport.runtime.ggml import cpu_library, processors
from bitexport.system.native_files import library_file

_TOPOLOGY = Path("/sys/devices/system/cpu")
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def default_threads() -> int:
    """One thread for each core that this process may use.

    Two hardware threads of one core share its multiply-add units and its way to the memory, so the second
    one adds nothing here. A container's share of processor time counts as well: more threads than it pays
    for wait for each other.
    """
    cores = physical_cores(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else processors()
    return max(1, min(cores, cpu_quota() or cores))


def physical_cores(cpus: set[int], topology: Path = _TOPOLOGY) -> int:
    """How many cores these processors are; each counts as one where the system does not tell."""
    return len({_siblings(topology, cpu) or str(cpu) for cpu in cpus})


def cpu_quota(file: Path = _CGROUP_QUOTA) -> int | None:
    """Processors that the container may keep busy, rounded up; None without a limit (cgroup v2 only)."""
    try:
        quota, period = file.read_text().split()
        return None if quota == "max" else max(1, math.ceil(int(quota) / int(period)))
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
    """Of models that are still open: a thread that outlives the libraries' own clean-up ends in a crash."""
    for pool in list(_running):
        pool.close()


class ThreadPool:
    """Threads that a llama.cpp context computes with, for as long as this lives.

    Without one ggml starts its threads for every token, which a small model feels.

    Args:
        context: the ``llama_context`` pointer; it must outlive this, or :meth:`close` be called first.
        count: threads, the calling one among them; a context never uses more than its pool has.

    Raises:
        NativeLibraryError: the system gives no more threads.
    """

    def __init__(self, context: int, count: int) -> None:
        self._context = ctypes.c_void_p(context)
        self._pool: int | None = _cpu().bitexport_new_threads(count)
        if not self._pool:
            raise NativeLibraryError(f"{count} threads could not be started; ask for fewer")
        _llama().llama_attach_threadpool(self._context, self._pool, None)
        _running.add(self)

    def close(self) -> None:
        """Take the threads from the context and end them. Closing twice does nothing."""
        if self._pool:
            _llama().llama_detach_threadpool(self._context)
        self.end()

    def end(self) -> None:
        """End the threads of a pool that another one took the place of.

        Not before the context computed once with that one: ggml then pauses the pool that it used last.
        """
        if self._pool:
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
