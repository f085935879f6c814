"""Records the int8 activations of every product that our kernels compute, as they quantized them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitexport.errors import NativeLibraryError
from bitexport.runtime.levels import cpu_library_file
from bitexport.runtime.library import api

_Observer = ctypes.CFUNCTYPE(
    None,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_int8),
    ctypes.c_int64,
    ctypes.POINTER(ctypes.c_float),
    ctypes.c_int64,
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
        return int(self.q.shape[1]) // int(self.scales.shape[1])


#: Input activations by GGUF weight name.
Recorded = dict[str, Activations]


@contextmanager
def record_activations() -> Iterator[Recorded]:
    """Record the activations of every product of our kernels until the block ends.

    The dictionary is filled when the block ends. Products of later batches are appended as further tokens.
    Only one recording is possible at a time, and no other thread may run a model during it.

    Raises:
        NativeLibraryError: the library has no observer, so it is not one of ours.
    """
    api()
    path = cpu_library_file()
    try:
        observe = ctypes.CDLL(str(path)).bitexport_observe
    except (OSError, AttributeError) as error:
        raise NativeLibraryError(
            f"{path} has no bitexport_observe ({error}); build it again with `make native`"
        ) from error
    observe.argtypes = [_Observer]
    observe.restype = None

    batches: dict[str, list[Activations]] = {}

    def on_product(
        weight: bytes, q: Any, stride: int, scales: Any, group: int, cols: int, tokens: int
    ) -> None:
        rows = np.ctypeslib.as_array(q, shape=(tokens, stride))
        of_groups = np.ctypeslib.as_array(scales, shape=(tokens, cols // group))
        batches.setdefault(weight.decode(), []).append(Activations(rows[:, :cols].copy(), of_groups.copy()))

    callback = _Observer(on_product)
    recorded: Recorded = {}
    observe(callback)
    try:
        yield recorded
    finally:
        observe(_Observer())  # a null pointer removes the observer
        for weight, parts in batches.items():
            recorded[weight] = Activations(
                np.concatenate([part.q for part in parts]), np.concatenate([part.scales for part in parts])
            )
