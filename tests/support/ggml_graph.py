"""One product on our buffer type, computed by ggml as llama.cpp would, without a model around it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from typing import Any

import numpy as np

from bitexport.gguf.types import I2_S, TensorType
from bitexport.system.native_files import library_file

F32, I32 = 0, 26  # ggml's type numbers


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


#: The functions of libggml-base (and, from ggml_backend_cpu on, libggml-cpu): their results and arguments.
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ggml_init": (c_void_p, [_InitParams]),
    "ggml_free": (None, [c_void_p]),
    "ggml_new_tensor_3d": (c_void_p, [c_void_p, c_int, c_int64, c_int64, c_int64]),
    "ggml_set_name": (c_void_p, [c_void_p, c_char_p]),
    "ggml_view_2d": (c_void_p, [c_void_p, c_void_p, c_int64, c_int64, c_size_t, c_size_t]),
    "ggml_view_3d": (c_void_p, [c_void_p, c_void_p, c_int64, c_int64, c_int64, c_size_t, c_size_t, c_size_t]),
    "ggml_mul_mat": (c_void_p, [c_void_p] * 3),
    "ggml_mul_mat_id": (c_void_p, [c_void_p] * 4),
    "ggml_add_id": (c_void_p, [c_void_p] * 4),
    "ggml_new_graph": (c_void_p, [c_void_p]),
    "ggml_build_forward_expand": (None, [c_void_p] * 2),
    "ggml_nbytes": (c_size_t, [c_void_p]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, [c_void_p] * 2),
    "ggml_backend_buffer_free": (None, [c_void_p]),
    "ggml_backend_tensor_set": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_tensor_get": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_supports_op": (c_bool, [c_void_p] * 2),
    "ggml_backend_graph_compute": (c_int, [c_void_p] * 2),
    "ggml_backend_free": (None, [c_void_p]),
    "ggml_backend_cpu_buffer_type": (c_void_p, []),
    "ggml_backend_cpu_init": (c_void_p, []),
    "ggml_backend_cpu_set_n_threads": (None, [c_void_p, c_int]),
    "bitexport_ternary_buffer_type": (c_void_p, []),
    "bitexport_grouped_buffer_type": (c_void_p, []),
}


class Ggml:
    """The functions above, as attributes."""

    def __init__(self) -> None:
        libraries = [ctypes.CDLL(str(library_file(name))) for name in ("ggml-base", "ggml-cpu")]
        for name, (result, arguments) in _SIGNATURES.items():
            function = next(getattr(library, name) for library in libraries if hasattr(library, name))
            function.restype = result
            function.argtypes = arguments
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


class Product:
    """Weights of any type on our buffer type or ggml's own, multiplied as often as wanted.

    Args:
        kind: the weights' type.
        data: their bytes, as in a file.
        shape: ``[experts, rows, columns]``.
        ours: on the buffer type of ours that is for this type.
    """

    def __init__(
        self, kind: TensorType, data: np.ndarray, shape: tuple[int, int, int], *, ours: bool = True
    ) -> None:
        self.ggml: Any = Ggml()
        self.backend = self.ggml.ggml_backend_cpu_init()
        self.shape = shape
        self.context = self.ggml.ggml_init(_InitParams(1 << 16, None, True))
        self.weights = self.ggml.ggml_new_tensor_3d(self.context, kind.id, *shape[::-1])
        self.ggml.ggml_set_name(self.weights, b"blk.0.ffn_up_exps.weight")
        our_type = "bitexport_ternary_buffer_type" if kind is I2_S else "bitexport_grouped_buffer_type"
        buffer_type = getattr(self.ggml, our_type if ours else "ggml_backend_cpu_buffer_type")()
        self.buffer = self.ggml.ggml_backend_alloc_ctx_tensors_from_buft(self.context, buffer_type)
        assert data.nbytes == self.ggml.ggml_nbytes(self.weights)
        data = np.ascontiguousarray(data)
        self.ggml.ggml_backend_tensor_set(self.weights, data.ctypes.data, 0, data.nbytes)

    def close(self) -> None:
        self.ggml.ggml_backend_buffer_free(self.buffer)
        self.ggml.ggml_free(self.context)
        self.ggml.ggml_backend_free(self.backend)

    def mul_mat_id(
        self,
        x: np.ndarray,
        ids: np.ndarray,
        threads: int,
        bias: np.ndarray | None = None,
        *,
        check: bool = True,
    ) -> np.ndarray:
        """``y[token, slot] = W[ids[token, slot]] x[token, slot % n]`` (and ``bias[ids[token, slot]]``).

        Args:
            x: float32 ``[tokens, n, columns]``, n 1 or the number of slots.
            ids: int32 ``[tokens, slots]``; may be a part of a wider array, which stays one in ggml.
            threads: their number.
            bias: float32 ``[experts, rows]``, which ggml's own ADD_ID adds.
            check: that the backend says that it supports the product.

        Returns:
            float32 ``[tokens, slots, rows]``.
        """

        def build(context: Any) -> tuple[Any, list[tuple[Any, np.ndarray]]]:
            wide = ids.base if ids.base is not None else ids
            activations = self._tensor(context, F32, x.shape)
            selected = self._tensor(context, I32, (1, *wide.shape))
            inputs = [(activations, x), (selected, wide)]
            view = self.ggml.ggml_view_2d(context, selected, *ids.shape[::-1], ids.strides[0], 0)
            result = self.ggml.ggml_mul_mat_id(context, self.weights, activations, view)
            self.ggml.ggml_set_name(result, b"ffn_moe_up-0")
            if check:
                assert self.ggml.ggml_backend_supports_op(self.backend, result)
            if bias is not None:
                added = self._tensor(context, F32, (1, *bias.shape))
                inputs.append((added, bias))
                result = self.ggml.ggml_add_id(context, result, added, view)
            return result, inputs

        return self._compute(build, (*ids.shape, self.shape[1]), threads)

    def of_view(self, x: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """The same with a view of all experts but the first."""

        def build(context: Any) -> tuple[Any, list[tuple[Any, np.ndarray]]]:
            experts, rows, columns = self.shape
            row = self.ggml.ggml_nbytes(self.weights) // (experts * rows)
            view = self.ggml.ggml_view_3d(
                context, self.weights, columns, rows, experts - 1, row, row * rows, row * rows
            )
            activations = self._tensor(context, F32, x.shape)
            selected = self._tensor(context, I32, (1, *ids.shape))
            selected_2d = self.ggml.ggml_view_2d(context, selected, *ids.shape[::-1], ids.strides[0], 0)
            result = self.ggml.ggml_mul_mat_id(context, view, activations, selected_2d)
            self.ggml.ggml_set_name(result, b"ffn_moe_up-0")
            return result, [(activations, x), (selected, ids)]

        return self._compute(build, (*ids.shape, self.shape[1]), 1)

    def mul_mat(self, x: np.ndarray) -> np.ndarray:
        """Every expert with activations of its own, which the backend must not claim to support.

        Args:
            x: float32 ``[tokens, 1, columns]``, repeated for every expert.
        """

        def build(context: Any) -> tuple[Any, list[tuple[Any, np.ndarray]]]:
            repeated = np.stack([x[:, 0]] * self.shape[0])
            activations = self._tensor(context, F32, repeated.shape)
            result = self.ggml.ggml_mul_mat(context, self.weights, activations)
            self.ggml.ggml_set_name(result, b"every-expert")
            assert not self.ggml.ggml_backend_supports_op(self.backend, result)
            return result, [(activations, repeated)]

        return self._compute(build, (self.shape[0], len(x), self.shape[1]), 1)

    def _tensor(self, context: Any, kind: int, shape: tuple[int, ...]) -> Any:
        return self.ggml.ggml_new_tensor_3d(context, kind, *shape[::-1])

    def _compute(
        self,
        build: Callable[[Any], tuple[Any, list[tuple[Any, np.ndarray]]]],
        shape: tuple[int, ...],
        threads: int,
    ) -> np.ndarray:
        with self.graph_context() as context:
            result, inputs = build(context)
            graph = self.ggml.ggml_new_graph(context)
            self.ggml.ggml_build_forward_expand(graph, result)
            buffer = self.ggml.ggml_backend_alloc_ctx_tensors_from_buft(
                context, self.ggml.ggml_backend_cpu_buffer_type()
            )
            for tensor, values in inputs:
                copied = np.ascontiguousarray(values)
                self.ggml.ggml_backend_tensor_set(tensor, copied.ctypes.data, 0, copied.nbytes)
            self.ggml.ggml_backend_cpu_set_n_threads(self.backend, threads)
            assert self.ggml.ggml_backend_graph_compute(self.backend, graph) == 0
            found = np.full(shape, np.nan, dtype=np.float32)
            self.ggml.ggml_backend_tensor_get(result, found.ctypes.data, 0, found.nbytes)
            self.ggml.ggml_backend_buffer_free(buffer)
        return found

    @contextmanager
    def graph_context(self) -> Iterator[Any]:
        """A ggml context for a graph."""
        context = self.ggml.ggml_init(_InitParams(1 << 20, None, True))
        yield context
        self.ggml.ggml_free(context)
