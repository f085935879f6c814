"""Workers on other machines, which compute some of a model's layers: see ``bitexport worker``."""

from __future__ import annotations

import ctypes
import functools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from bitexport.errors import BitexportError, UsageError, WorkerError
from bitexport.gguf.reader import read_gguf
from bitexport.runtime.library import api
from bitexport.runtime.placement import Machine, Placement, place
from bitexport.runtime.processes import Owner
from bitexport.system.machine import free_memory
from bitexport.system.native_files import library_file

DEFAULT_PORT = 50052

#: ggml's limit of servers.
_MOST_WORKERS = 16

_HOST = re.compile(r"[0-9A-Za-z]([0-9A-Za-z.-]*[0-9A-Za-z])?")

_Error = TypeVar("_Error", bound=BitexportError)


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What a worker says about itself.

    Attributes:
        address: ``HOST:PORT``.
        tier: its kernels.
        threads: with which it computes.
        free_bytes, total_bytes: of the memory that it lends.
    """

    address: str
    tier: str
    threads: int
    free_bytes: int
    total_bytes: int


def parse_workers(workers: str | Sequence[str]) -> list[str]:
    """``"a,b:5000"`` or ``["a", "b:5000"]`` -> ``["a:50052", "b:5000"]``.

    Raises:
        UsageError: an address is not ``HOST`` or ``HOST:PORT``, or there twice; or there are too many.
    """
    if not isinstance(workers, str | Sequence):
        raise UsageError(f"the workers are {workers!r}; give a list of HOST:PORT")
    parts = workers.split(",") if isinstance(workers, str) else list(workers)
    found = []
    for part in parts:
        if not isinstance(part, str):
            raise UsageError(f"the worker {part!r} is not text; give HOST:PORT")
        host, _, port = part.strip().partition(":")
        port = port or str(DEFAULT_PORT)
        if not _HOST.fullmatch(host) or not port.isdecimal() or not 1 <= int(port) <= 65535:
            raise UsageError(
                f"the worker {part.strip()!r} has no address such as 192.168.0.2:{DEFAULT_PORT}; "
                "give HOST:PORT, an IPv4 address or a name"
            )
        found.append(f"{host}:{int(port)}")
    for address in found:
        if found.count(address) > 1:
            raise UsageError(f"the worker {address} is given twice; each computes layers of its own")
    if len(found) > _MOST_WORKERS:
        raise UsageError(f"{len(found)} workers are given; llama.cpp uses at most {_MOST_WORKERS}")
    return found


class Workers:
    """Connections to workers, for one model.

    Args:
        workers: their addresses; see :func:`parse_workers`.

    Raises:
        UsageError: see :func:`parse_workers`.
        WorkerError: one cannot be reached, or is another version of bitexport.
    """

    def __init__(self, workers: str | Sequence[str]) -> None:
        self.addresses = parse_workers(workers)
        api()
        self._owner = Owner("these connections")
        self._connected: list[str] = []
        devices = []
        try:
            for address in self.addresses:
                devices.append(self._connect(address))
        except BaseException:
            self.close()
            raise
        self._devices = (ctypes.c_void_p * (len(devices) + 1))(*devices, None)

    @property
    def devices(self) -> ctypes.c_void_p:
        """For ``llama_model_params``; it lives as long as this object."""
        return ctypes.cast(self._devices, ctypes.c_void_p)

    def _connect(self, address: str) -> int:
        device = _rpc().bitexport_connect(address.encode())
        if not device:
            raise _failure(address) or WorkerError(f"worker {address} cannot be used")
        self._connected.append(address)
        return int(device)

    def states(self) -> list[WorkerState]:
        """What each worker says about itself.

        Raises:
            WorkerError: one is lost.
        """
        return [self._state(address) for address in self.addresses]

    def _state(self, address: str) -> WorkerState:
        threads = ctypes.c_uint32()
        tier = ctypes.create_string_buffer(64)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        if not _rpc().bitexport_describe_worker(
            address.encode(),
            ctypes.byref(threads),
            tier,
            len(tier),
            ctypes.byref(free),
            ctypes.byref(total),
        ):
            raise _failure(address) or WorkerError(f"worker {address} is lost")
        return WorkerState(address, tier.value.decode(), threads.value, free.value, total.value)

    def place(self, path: str | os.PathLike[str], layers: Sequence[int], n_ctx: int) -> Placement:
        """Decide which machine computes which layers of a file.

        Args:
            path: the file.
            layers: see :func:`bitexport.load`.
            n_ctx: tokens of all sequences together.

        Raises:
            UsageError, UnsupportedError: see :func:`bitexport.runtime.placement.place`.
            WorkerError: a worker is lost.
        """
        own = free_memory()
        machines = [Machine("this machine", own)]
        machines += [Machine(f"worker {each.address}", each.free_bytes) for each in self.states()]
        return place(read_gguf(os.fspath(path)), machines, layers, n_ctx)

    def failure(self) -> WorkerError | None:
        """Why one of these workers failed since the connections were made; None if none did."""
        return next(filter(None, map(_failure, self.addresses)), None)

    def close(self) -> None:
        """End the connections. Those of a model that is still open last until it is closed."""
        while self._connected and self._owner.here():  # a forked child shares the parent's
            _rpc().bitexport_disconnect(self._connected.pop().encode())


def _failure(address: str) -> WorkerError | None:
    message = _rpc().bitexport_worker_failure(address.encode())
    return None if message is None else WorkerError(message.decode("utf-8", errors="replace"))


def error_of(workers: Workers | None, other: Callable[[], _Error]) -> _Error | WorkerError:
    """The error after something failed: that of a worker, or else ``other()``."""
    return (workers.failure() if workers is not None else None) or other()


def offload(params: Any, workers: Workers | None, placement: Placement | None) -> None:
    """Write into ``llama_model_params`` which layers the workers compute."""
    if workers is None or placement is None:
        return
    # llama.cpp reads as many as it has room for, and ctypes keeps the array as long as the structure
    shares = (ctypes.c_float * api().LLAMA_MAX_DEVICES)(*placement.tensor_split)
    params.devices = workers.devices
    params.n_gpu_layers = placement.n_gpu_layers
    params.split_mode = api().LLAMA_SPLIT_MODE_LAYER
    params.tensor_split = shares


def identity() -> str:
    """This program's version as workers see it, such as ``"bitexport 0.1.0 (build 1a2b3c4d)"``."""
    api()
    text: bytes = _rpc().bitexport_identity()
    return text.decode()


@functools.cache
def _rpc() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_file("ggml-rpc")))
    library.bitexport_connect.argtypes = [ctypes.c_char_p]
    library.bitexport_connect.restype = ctypes.c_void_p
    library.bitexport_disconnect.argtypes = [ctypes.c_char_p]
    library.bitexport_disconnect.restype = None
    sizes = [ctypes.POINTER(ctypes.c_size_t)] * 2
    library.bitexport_describe_worker.argtypes = [
        ctypes.c_char_p,
        ctypes.POINTER(ctypes.c_uint32),
        ctypes.c_char_p,
        ctypes.c_size_t,
        *sizes,
    ]
    library.bitexport_describe_worker.restype = ctypes.c_bool
    library.bitexport_worker_failure.argtypes = [ctypes.c_char_p]
    library.bitexport_worker_failure.restype = ctypes.c_char_p
    library.bitexport_identity.restype = ctypes.c_char_p
    return library
