"""Reads the tensors of llama.cpp's graph by name while they are computed: every step of every layer.

llama.cpp names the tensors of a graph (``attn_norm-3``) and calls a callback, set when the context is
created, before and after computing each of them.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from bitexport.errors import NativeLibraryError
from bitexport.runtime.library import api
from bitexport.system.native_files import library_file

#: Operations that compute nothing: their result is a view of another tensor.
_VIEWS = frozenset({"NONE", "VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE"})
_F32 = 0  # ggml's type number


class _Tensor(ctypes.Structure):
    """The beginning of ``struct ggml_tensor`` in ggml.h of the pinned llama.cpp."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
    )


class Trace:
    """The recorded tensors of one or more batches.

    Several tensors of a layer may have the same name, each computed from the one before: ``Qcur-3`` is the
    product, then the sum with its bias, then the rotated tensor. The name of the ggml operation
    distinguishes them.
    """

    def __init__(self) -> None:
        self._batches: dict[tuple[str, str], list[npt.NDArray[np.float32]]] = {}

    def add(self, name: str, operation: str, values: npt.NDArray[np.float32]) -> None:
        """Append the values of a batch; the outermost dimension is that of the tokens."""
        self._batches.setdefault((name, operation), []).append(values.reshape(-1))

    def get(
        self, names: Sequence[str], tokens: int, operations: Sequence[str] = ()
    ) -> npt.NDArray[np.float32] | None:
        """The last tensor with one of ``names``, and computed by one of ``operations`` if any are given.

        Returns:
            float32 ``[tokens, width]``, with heads concatenated; None if the graph has no such tensor.
        """
        found = None
        for (name, operation), batches in self._batches.items():
            if name in names and (not operations or operation in operations):
                found = batches
        return None if found is None else np.concatenate(found).reshape(tokens, -1)


class Tracer:
    """The callback of a context. Pass it to :class:`bitexport.runtime.session.Session`."""

    def __init__(self) -> None:
        self._library = _ggml()
        self._names: frozenset[str] = frozenset()
        self._trace: Trace | None = None
        self._error: Exception | None = None
        #: ``llama_context_params.cb_eval``; it must outlive the context
        self.callback = api().ggml_backend_sched_eval_callback(self._observe)

    @contextmanager
    def record(self, names: frozenset[str]) -> Iterator[Trace]:
        """Record the float32 tensors of these names (without layer numbers) until the block ends.

        Raises:
            NativeLibraryError: a tensor could not be read.
        """
        self._trace, self._names, self._error = Trace(), names, None
        try:
            yield self._trace
        finally:
            self._trace = None
        if self._error is not None:
            raise NativeLibraryError(
                f"a tensor of llama.cpp's graph cannot be read: {self._error}; build the libraries again "
                "with `make native`"
            ) from self._error

    def _observe(self, address: int, asks: bool, _user_data: object) -> bool:
        """Called twice per tensor: with ``asks`` to return whether it is wanted, then when it is computed.

        The second call returns whether to continue with the graph.
        """
        if self._trace is None:
            return not asks
        try:
            name = self._library.ggml_get_name(address).decode()
            operation = self._library.ggml_op_desc(address).decode()
            if asks:
                return name.partition("-")[0] in self._names and operation not in _VIEWS
            self._trace.add(name, operation, self._read(address))
        except Exception as error:  # an exception must not propagate into C
            self._error = error
            return False
        return True

    def _read(self, address: int) -> npt.NDArray[np.float32]:
        tensor = ctypes.cast(address, ctypes.POINTER(_Tensor)).contents
        if tensor.type != _F32:
            raise TypeError(f"type {tensor.type}, expected float32")
        data = np.empty(self._library.ggml_nbytes(address), np.uint8)
        self._library.ggml_backend_tensor_get(address, data.ctypes.data, 0, data.nbytes)
        shape = [int(size) for size in reversed(tensor.ne)]
        strides = [int(step) for step in reversed(tensor.nb)]
        values: npt.NDArray[np.float32] = np.ndarray(shape, np.float32, data, strides=strides)
        return np.ascontiguousarray(values)


@functools.cache
def _ggml() -> Any:
    api()
    library = ctypes.CDLL(str(library_file("ggml-base")))
    for name, result, arguments in (
        ("ggml_get_name", ctypes.c_char_p, [ctypes.c_void_p]),
        ("ggml_op_desc", ctypes.c_char_p, [ctypes.c_void_p]),
        ("ggml_nbytes", ctypes.c_size_t, [ctypes.c_void_p]),
        (
            "ggml_backend_tensor_get",
            None,
            [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t],
        ),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
