"""Calls ggml's own functions where the result must equal llama.cpp's bit for bit."""

from __future__ import annotations

import ctypes
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bitexport.errors import NativeLibraryError, UnsupportedError
from bitexport.runtime.levels import cpu_library_file
from bitexport.runtime.library import refuse_foreign_libraries
from bitexport.runtime.log import capture_ggml
from bitexport.system.native_files import find_library_dir, library_file

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

TIER_VARIABLE = "BITEXPORT_TIER"
LAYOUT_VARIABLE = "BITEXPORT_LAYOUT"

#: What can be left to llama.cpp by BITEXPORT_<NAME>=stock.
_SWITCHES = ("head", "grouped", "attention", "graph", "threads")


@dataclass(frozen=True, slots=True)
class _Type:
    number: int
    block: int  # weights
    block_bytes: int


# from ggml.h and ggml-common.h of the pinned llama.cpp
_TYPES = {
    "f16": _Type(1, 1, 2),
    "q4_0": _Type(2, 32, 18),
    "q4_1": _Type(3, 32, 20),
    "q5_0": _Type(6, 32, 22),
    "q5_1": _Type(7, 32, 24),
    "q8_0": _Type(8, 32, 34),
    "q3_k": _Type(11, 256, 110),
    "q4_k": _Type(12, 256, 144),
    "q5_k": _Type(13, 256, 176),
    "q6_k": _Type(14, 256, 210),
    "iq4_nl": _Type(20, 32, 18),
    "iq4_xs": _Type(23, 256, 136),
    "tq2_0": _Type(35, 256, 66),
}


def quantize(
    weights: npt.NDArray[np.float32], type_name: str, threads: int | None = None
) -> npt.NDArray[np.uint8]:
    """Quantize a matrix with ``ggml_quantize_chunk``.

    Args:
        weights: float32, shape ``[rows, cols]``, finite.
        type_name: a type that needs no importance matrix, such as ``"f16"``, ``"q8_0"`` or ``"q6_k"``.
        threads: the number of threads; None for one per processor. The bytes do not depend on it.

    Returns:
        uint8, shape ``[rows, bytes per row]``.

    Raises:
        UnsupportedError: ``type_name`` is not one of these types, or ``cols`` is not a multiple of its block.
        NativeLibraryError: our library is missing.
    """
    kind = _TYPES.get(type_name)
    if kind is None:
        raise UnsupportedError(f"cannot quantize to '{type_name}'; expected one of {', '.join(_TYPES)}")
    if weights.ndim != 2 or weights.shape[1] % kind.block != 0:
        raise UnsupportedError(
            f"a matrix of shape {weights.shape} cannot be stored as {type_name}; expected rows of a multiple "
            f"of {kind.block} weights: use f16"
        )
    import numpy as np  # slow to import, and not needed to run a model

    source = np.ascontiguousarray(weights, dtype=np.float32)
    rows, cols = source.shape
    result = np.empty((rows, cols // kind.block * kind.block_bytes), dtype=np.uint8)
    workers = max(1, min(threads or processors(), rows))
    bounds = [rows * index // workers for index in range(workers + 1)]

    def quantize_rows(begin: int, end: int) -> None:
        chunk, target = source[begin:end], result[begin:end]
        if end > begin:
            written = _base().ggml_quantize_chunk(
                kind.number, chunk.ctypes.data, target.ctypes.data, 0, end - begin, cols, None
            )
            assert written == target.nbytes, f"ggml wrote {written} bytes of {type_name}, not {target.nbytes}"

    if workers == 1:
        quantize_rows(0, rows)
    else:
        with ThreadPoolExecutor(workers) as pool:  # ctypes releases the interpreter lock
            list(pool.map(quantize_rows, bounds[:-1], bounds[1:]))
    return result


def cpu_tier() -> str:
    """The kernel tier that this process uses, one of ``native/kernels/ternary/tiers.inc``.

    Raises:
        NativeLibraryError: ``BITEXPORT_TIER`` or ``BITEXPORT_LAYOUT`` names one that does not exist or that
            this CPU does not support, or ``BITEXPORT_HEAD``, ``BITEXPORT_GROUPED``, ``BITEXPORT_ATTENTION``
            or ``BITEXPORT_GRAPH`` is set to anything but ``stock``, or ``BITEXPORT_THREADS`` to anything but
            ``stock`` or ``fastest``.
    """
    library = cpu_library()
    for switch in _SWITCHES:
        if message := getattr(library, f"bitexport_{switch}_error")():
            raise NativeLibraryError(message.decode())
    return _selected(library.bitexport_tier_name())


def weight_layout() -> str:
    """The layout in which this process stores ternary weights in memory: ``"2bit"`` or ``"1.6bit"``.

    Raises:
        NativeLibraryError: as :func:`cpu_tier`.
    """
    return _selected(cpu_library().bitexport_layout_name())


def _selected(name: bytes | None) -> str:
    """The name of a tier or layout; raises the library's error if it selected none."""
    if name is not None:
        return name.decode()
    library = cpu_library()
    variable, message = TIER_VARIABLE, library.bitexport_tier_error()
    if message is None:
        variable = LAYOUT_VARIABLE
        message = library.bitexport_layout_error()
    reason = (message or b"no kernel tier can be used").decode()
    raise NativeLibraryError(f"{variable}={os.environ.get(variable, '')}: {reason}")


def processors() -> int:
    """The number of processors (hardware threads) that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _base() -> ctypes.CDLL:
    library = _open(library_file("ggml-base"))
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library


@functools.cache
def cpu_library() -> ctypes.CDLL:
    """Our libggml-cpu, which exports the functions of native/llama_cpp/ggml.

    Raises:
        NativeLibraryError: it is missing or cannot be loaded.
    """
    library = _open(cpu_library_file())
    capture_ggml(_base())  # it logs what we raise
    errors = [f"{switch}_error" for switch in _SWITCHES]
    for name in ("tier_name", "tier_error", "layout_name", "layout_error", *errors):
        getattr(library, f"bitexport_{name}").restype = ctypes.c_char_p
    library.bitexport_bytes_read.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    library.bitexport_bytes_read.restype = ctypes.c_size_t
    library.bitexport_multiply_adds.argtypes = [ctypes.c_int64]
    library.bitexport_multiply_adds.restype = ctypes.c_int64
    library.bitexport_read_memory.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    library.bitexport_read_memory.restype = ctypes.c_uint64
    library.bitexport_nodes_joined.restype = ctypes.c_uint64
    return library


def _open(file: Path) -> ctypes.CDLL:
    refuse_foreign_libraries(find_library_dir())
    try:
        return ctypes.CDLL(str(file))
    except OSError as error:
        raise NativeLibraryError(
            f"{file} cannot be loaded: {error}; build it again with `make native`"
        ) from error
