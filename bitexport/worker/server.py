"""Runs llama.cpp's RPC server on our libraries, in a thread of this process."""

from __future__ import annotations

import ctypes
import functools
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from bitexport.errors import UsageError
from bitexport.runtime import ggml
from bitexport.runtime.library import api
from bitexport.runtime.limits import check_threads
from bitexport.runtime.remote import DEFAULT_PORT
from bitexport.runtime.threads import default_threads
from bitexport.system.machine import free_memory
from bitexport.system.native_files import library_file
from bitexport.worker.address import check_address

_GIB = 1 << 30

#: Of the memory that is free when the worker starts, unless the user says how much.
_DEFAULT_SHARE = 0.9

_EVENT = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p)

_logger = logging.getLogger("bitexport.native")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a client, a program that uses this worker.

    Attributes:
        kind: ``"connected"``, ``"left"``, ``"refused"`` or ``"dropped"``.
        client: its ``HOST:PORT``.
        reason: why it was refused or dropped; otherwise empty.
    """

    kind: str
    client: str
    reason: str


class Worker:
    """Computes for one program at a time, which connects with ``workers=[...]`` or ``--workers``.

    A context manager: it works inside ``with``. There can be one in a process.

    Args:
        host: the IPv4 address to listen on: one of this machine that only trusted machines reach.
        port: 0 for any free one; :attr:`address` has it.
        threads: threads that compute; 0 for one per core.
        memory_gib: memory for what clients store, in GiB; 0 for 90% of what is free now.
        allow_public: listen on an address that other networks may reach.
        on_event: called for each event, in a thread of its own.

    Raises:
        UsageError: an option is out of range, the address is taken, or others than a private network reach
            it.
        NativeLibraryError: a library is missing.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        threads: int = 0,
        memory_gib: float = 0,
        allow_public: bool = False,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        check_address(host, port, public=allow_public)
        self.threads = threads or default_threads()
        check_threads(self.threads)
        self.memory_bytes = _memory(memory_gib)
        api()
        self.tier = ggml.cpu_tier()
        self.host = host
        self._on_event = on_event
        self._thread: threading.Thread | None = None
        self._done = threading.Event()
        self._callback = _EVENT(self._take)
        error = ctypes.create_string_buffer(512)
        self._worker: int | None = _rpc().bitexport_worker_open(
            host.encode(), port, self.threads, self.memory_bytes, error, len(error)
        )
        if not self._worker:
            reason = error.value.decode(errors="replace")
            raise UsageError(
                f"cannot listen on {host} port {port}: {reason}; choose another --port (0 for any free one) "
                "or --host"
            )
        self.port = int(_rpc().bitexport_worker_port(self._worker))

    @property
    def address(self) -> str:
        """What clients give as a worker, such as ``127.0.0.1:50052``."""
        return f"{self.host}:{self.port}"

    def start(self) -> None:
        """Take clients, in a thread of its own."""
        if self._worker is None or self._thread is not None:
            raise UsageError("this worker was started before; make a new one")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            _rpc().bitexport_worker_serve(self._worker, self._callback)
        finally:
            self._done.set()

    def wait(self) -> None:
        """Block until :meth:`stop` is called."""
        if self._thread is not None:
            self._done.wait()  # before Python 3.13, an interrupted join() takes the thread for ended

    def stop(self) -> None:
        """Tell the client, if there is one, and stop. Stopping twice does nothing."""
        if self._worker is None:
            return
        _rpc().bitexport_worker_stop(self._worker)
        self.wait()
        _rpc().bitexport_worker_close(self._worker)
        self._worker = None

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __del__(self) -> None:
        if getattr(self, "_worker", None) is not None:
            self.stop()

    def _take(self, kind: bytes, client: bytes, reason: bytes) -> None:
        if self._on_event is None:
            return
        event = Event(kind.decode(), client.decode(), reason.decode(errors="replace"))
        try:
            self._on_event(event)
        except Exception:
            self._on_event = None
            _logger.exception("on_event failed, and is not called for later events")


def worker(*, on_ready: Callable[[Worker], None] | None = None, **options: Any) -> None:
    """Work until the process is interrupted: the function behind ``bitexport worker``.

    Args:
        on_ready: called once the worker takes clients.
        options: those of :class:`Worker`.

    Raises:
        UsageError, NativeLibraryError: as for :class:`Worker`. A ``KeyboardInterrupt`` ends it normally.
    """
    with Worker(**options) as started:
        try:
            if on_ready is not None:
                on_ready(started)
            started.wait()
        except KeyboardInterrupt:
            pass


def _memory(gib: float) -> int:
    free = free_memory()
    if gib < 0 or gib != gib:
        raise UsageError(f"the memory is {gib} GiB; expected more than 0, or 0 for most of what is free")
    if gib == 0:
        if free is None:
            raise UsageError("this system does not say how much memory is free; give --memory GIB")
        return int(free * _DEFAULT_SHARE)
    if free is not None and gib * _GIB > free:
        raise UsageError(
            f"{gib:g} GiB of memory are offered, and {free / _GIB:.2f} GiB are free; offer less with --memory"
        )
    return int(gib * _GIB)


@functools.cache
def _rpc() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_file("ggml-rpc")))
    library.bitexport_worker_open.argtypes = [
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_size_t,
        ctypes.c_char_p,
        ctypes.c_size_t,
    ]
    library.bitexport_worker_open.restype = ctypes.c_void_p
    library.bitexport_worker_port.argtypes = [ctypes.c_void_p]
    library.bitexport_worker_port.restype = ctypes.c_int
    library.bitexport_worker_serve.argtypes = [ctypes.c_void_p, _EVENT]
    library.bitexport_worker_serve.restype = None
    for function in (library.bitexport_worker_stop, library.bitexport_worker_close):
        function.argtypes = [ctypes.c_void_p]
        function.restype = None
    return library
