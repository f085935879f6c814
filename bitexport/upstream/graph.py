"""Evaluates what a converter did with its lazy tensors, with the checkpoint's tensors replaced by others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from bitexport.upstream.sources import SourceTensor

#: float32 counts up to this number exactly.
EXACT_F32 = 1 << 24


def checkpoint_tensor(value: Any) -> SourceTensor | None:
    """The checkpoint's tensor if ``value`` is one, unchanged."""
    args = value._args
    return args[0] if args and isinstance(args[0], SourceTensor) else None


def leaves_of(value: Any) -> dict[str, SourceTensor]:
    """The checkpoint's tensors that a recorded tensor depends on, by name."""
    found: dict[str, SourceTensor] = {}
    for node in _nodes(value):
        if source := checkpoint_tensor(node):
            found[source.name] = source
    return found


def _nodes(value: Any) -> Iterator[Any]:
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, (list, tuple)):
            waiting.extend(item)
        elif isinstance(item, gguf.LazyBase) and id(item) not in seen:
            seen.add(id(item))
            yield item
            waiting.extend((item._args, tuple(item._kwargs.values())))


def evaluate(value: Any, load: Callable[[SourceTensor], Any]) -> Any:
    """``value`` with real tensors in place of recorded ones; ``load`` gives the checkpoint's."""
    return _evaluate(value, load, {})


def _evaluate(value: Any, load: Callable[[SourceTensor], Any], known: dict[int, Any]) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_evaluate(item, load, known) for item in value)
    if not isinstance(value, gguf.LazyBase):
        return value
    if id(value) not in known:
        if source := checkpoint_tensor(value):
            known[id(value)] = load(source)
        elif value._func is None:
            known[id(value)] = value._data
        else:
            kwargs = {key: _evaluate(item, load, known) for key, item in value._kwargs.items()}
            known[id(value)] = value._func(*_evaluate(value._args, load, known), **kwargs)
    return known[id(value)]


def row_numbers(
    torch: Any, recorded: Any, leaves: dict[str, SourceTensor]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """The rows of the checkpoint's tensors that a recorded tensor consists of; None if it consists of others.

    Args:
        torch: the module, which is imported by a converter only.
        leaves: see :func:`leaves_of`.

    Returns:
        The source (its number in ``leaves``) and the row of every row, int64 ``[rows, 2]``, and the column of
        every column, int64 ``[columns]``.
    """
    begins, total = {}, 1  # 0 is what a converter pads with
    for source in leaves.values():
        begins[source.name] = total
        total += int(np.prod(source.shape[:-1], dtype=np.int64))
    kind = torch.float32 if total <= EXACT_F32 else torch.float64

    def rows(source: SourceTensor) -> Any:
        lead = source.shape[:-1]
        count = int(np.prod(lead, dtype=np.int64))
        numbers = torch.arange(begins[source.name], begins[source.name] + count, dtype=kind)
        return numbers.reshape(*lead, 1).expand(source.shape)

    def columns(source: SourceTensor) -> Any:
        return torch.arange(1, source.shape[-1] + 1, dtype=kind).expand(source.shape)

    try:
        found = np.asarray(evaluate(recorded, columns))
        if any(source.shape[-1:] != found.shape[-1:] for source in leaves.values()):
            return None
        order = _common(found, axis=-2) if found.ndim > 1 else None
        del found
        if order is None or not np.array_equal(np.sort(order), np.arange(1, len(order) + 1)):
            return None
        row = _common(np.asarray(evaluate(recorded, rows)), axis=-1)
    except RuntimeError:  # PyTorch refuses to write into numbers that share their memory
        return None
    if row is None or row.size == 0 or row.min() < 1 or row.max() >= total or np.any(row % 1):
        return None
    numbers = row.astype(np.int64)
    edges = np.array(list(begins.values()))
    source_of = np.searchsorted(edges, numbers, side="right") - 1
    return np.column_stack([source_of, numbers - edges[source_of]]), order.astype(np.int64) - 1


def _common(array: npt.NDArray[Any], axis: int) -> npt.NDArray[Any] | None:
    """The values that do not change along the columns (axis -1), or along all other axes; None if they do."""
    # repetitions that take no memory need no comparison
    view = array[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in array.strides)]
    first = view[..., :1] if axis == -1 else view[tuple([slice(0, 1)] * (view.ndim - 1))]
    if not np.array_equal(view, np.broadcast_to(first, view.shape)):
        return None
    shape = (*array.shape[:-1], 1) if axis == -1 else array.shape[-1:]
    return np.broadcast_to(first if axis == -1 else first.reshape(-1), shape).reshape(-1)
