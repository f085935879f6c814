"""Records the int8 activations of every ternary product, as our kernels quantized them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Activations:
    """The quantized inputs of one weight, in the order of the tokens.

    An activation is ``q / scales``, where a scale is for ``group`` neighbouring columns.

    Attributes:
        q: int8 ``[tokens, in]``.
        scales: float32 ``[tokens, in / group]``; infinite where a group is zero, NaN where it was not finite.
    """

    q: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]

    @property
    def group(self) -> int:
        """How many columns share a scale: all of them for I2_S, 32 for Q2_0, 256 for TQ1_0 and TQ2_0."""
        return self.q.shape[1] // self.scales.shape[1]


#: Input activations by GGUF weight name.
Recorded = dict[str, Activations]


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

    batches: dict[str, list[Activations]] = {}

    def on_product(weight: bytes, q: Any, stride: int, scale: Any, cols: int, tokens: int) -> None:
        view = np.ctypeslib.as_array(q, shape=(tokens, stride))
        batches.setdefault(weight.decode(), []).append(
            Activations(view[:, :cols].copy(), np.ctypeslib.as_array(scale, shape=(tokens, 1)).copy())
        )

    callback = _Observer(on_product)
    recorded: Recorded = {}
    observe(callback)
    try:
        yield recorded
    finally:
        observe(_Observer())  # a null pointer removes the observer
        recorded.update({weight: _joined(found) for weight, found in batches.items()})


def _joined(batches: list[Activations]) -> Activations:
    return Activations(
        np.concatenate([each.q for each in batches]), np.concatenate([each.scales for each in batches])
    )
