"""Reads the tensors of llama.cpp's graph by name while they are computed: every step of every layer.

llama.cpp names the tensors of a graph (``attn_norm-3``) and calls a function of the caller's, set when the
context is made, before and after each of them.
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
from bitexport.runtime.library import bind
from bitexport.system.native_files import library_file

#: What only looks at another tensor's values, or prepares them, computes nothing.
_VIEWS = frozenset({"NONE", "VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE"})
_F32 = 0  # ggml's number of the type


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
    """Tensors of one or more batches.

    A name may stand for several tensors of a layer, each made of the one before: ``Qcur-3`` is the product,
    then the sum with its bias, then the rotated one. They are told apart by ggml's name of the operation.
    """

    def __init__(self) -> None:
        self._parts: dict[tuple[str, str], list[npt.NDArray[np.float32]]] = {}

    def add(self, name: str, operation: str, values: npt.NDArray[np.float32]) -> None:
        """Append the values of a batch; tokens are their slowest dimension."""
        self._parts.setdefault((name, operation), []).append(values.reshape(-1))

    def get(
        self, names: Sequence[str], tokens: int, operations: Sequence[str] = ()
    ) -> npt.NDArray[np.float32] | None:
        """The last tensor computed under one of ``names``, by one of ``operations`` if there are any.

        Returns:
            float32 ``[tokens, width]``, heads side by side; None when the graph has no such tensor.
        """
        found = None
        for (name, operation), parts in self._parts.items():
            if name in names and (not operations or operation in operations):
                found = parts
        return None if found is None else np.concatenate(found).reshape(tokens, -1)


class Tracer:
    """The function that a context calls. Give it to :class:`bitexport.runtime.session.Session`."""

    def __init__(self) -> None:
        self._library = _ggml()
        self._names: frozenset[str] = frozenset()
        self._trace: Trace | None = None
        self._error: Exception | None = None
        #: for ``llama_context_params.cb_eval``; it must live as long as the context
        self.callback = bind().llama_cpp.ggml_backend_sched_eval_callback(self._observe)

    @contextmanager
    def record(self, names: frozenset[str]) -> Iterator[Trace]:
        """Keep the float32 tensors of these names, without the layer's number, until the block ends.

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
                f"a tensor of llama.cpp's graph cannot be read: {self._error}; build the libraries again: "
                "make native"
            ) from self._error

    def _observe(self, address: int, asks: bool, _user_data: object) -> bool:
        """``asks``: whether the tensor is wanted. Otherwise it is there, and True goes on with the graph."""
        if self._trace is None:
            return not asks
        try:
            name = self._library.ggml_get_name(address).decode()
            operation = self._library.ggml_op_desc(address).decode()
            if asks:
                return name.partition("-")[0] in self._names and operation not in _VIEWS
            self._trace.add(name, operation, self._read(address))
        except Exception as error:  # nothing may leave a callback
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
    bind()
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
