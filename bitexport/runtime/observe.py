"""Records the int8 activations of every ternary product, as our kernels quantized them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from bitexport.errors import NativeLibraryError
from bitexport.runtime.library import bind
from bitexport.system.native_files import library_file

_Observer = ctypes.CFUNCTYPE(
    None,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_int8),
    ctypes.c_int64,
    ctypes.POINTER(ctypes.c_float),
    ctypes.c_int64,
    ctypes.c_int64,
)

#: Input activations by GGUF weight name: int8 [tokens, in], in the order of the tokens.
Recorded = dict[str, npt.NDArray[np.int8]]


@contextmanager
def record_activations() -> Iterator[Recorded]:
    """Record the activations of every ternary product until the block ends.

    The dictionary is filled when the block ends. Products of later batches are appended as further tokens.
    Only one recording is possible at a time, and no other thread may run a model during it.

    Raises:
        NativeLibraryError: the library has no observer, so it is not one of ours.
    """
    bind()
    path = library_file("ggml-cpu")
    try:
        observe = ctypes.CDLL(str(path)).bitexport_observe
    except (OSError, AttributeError) as error:
        raise NativeLibraryError(
            f"{path} has no bitexport_observe ({error}); build it again with `make native`"
        ) from error
    observe.argtypes = [_Observer]
    observe.restype = None

    batches: dict[str, list[npt.NDArray[np.int8]]] = {}

    def on_product(weight: bytes, q: Any, stride: int, _scale: Any, cols: int, tokens: int) -> None:
        view = np.ctypeslib.as_array(q, shape=(tokens, stride))
        batches.setdefault(weight.decode(), []).append(view[:, :cols].copy())

    callback = _Observer(on_product)
    recorded: Recorded = {}
    observe(callback)
    try:
        yield recorded
    finally:
        observe(_Observer())  # a null pointer removes the observer
        recorded.update({weight: np.concatenate(arrays) for weight, arrays in batches.items()})
