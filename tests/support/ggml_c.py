"""Calls ggml's own C code from our library, to compare with every packer."""

from __future__ import annotations

import ctypes

import numpy as np

from bitexport.gguf.types import TYPES
from bitexport.system.native_files import library_file


def quantized(weights: np.ndarray, kind: str) -> np.ndarray:
    """The bytes that ``ggml_quantize_chunk`` writes for float32 ``[rows, cols]``: uint8, flat."""
    library = ctypes.CDLL(str(library_file("ggml-base")))
    quantize = library.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    source = np.ascontiguousarray(weights, dtype=np.float32)
    target = np.empty(TYPES[kind].nbytes(source.shape), dtype=np.uint8)
    written = quantize(
        TYPES[kind].id, source.ctypes.data, target.ctypes.data, 0, len(source), source.shape[1], None
    )
    assert written == target.nbytes
    return target


def dequantized(data: np.ndarray, shape: tuple[int, int], kind: str) -> np.ndarray:
    """The values that ``dequantize_row_<kind>`` reads from the bytes: float32 ``[rows, cols]``."""
    library = ctypes.CDLL(str(library_file("ggml-base")))
    dequantize = getattr(library, f"dequantize_row_{kind}")
    dequantize.restype = None
    dequantize.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    source = np.ascontiguousarray(data)
    result = np.empty(shape, dtype=np.float32)
    dequantize(source.ctypes.data, result.ctypes.data, result.size)
    return result
