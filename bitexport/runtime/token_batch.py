"""The tokens of one evaluation, in memory that libllama reads and that is used again for every evaluation."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


class TokenBatch:
    """A ``llama_batch`` that is filled by NumPy: microseconds, where ctypes takes as long for each token.

    Args:
        api: of :func:`bitexport.runtime.library.api`.
        capacity: the most tokens of an evaluation.

    Attributes:
        raw: for ``llama_decode``.
    """

    def __init__(self, api: Any, capacity: int) -> None:
        self._api = api
        self.raw: Any = api.llama_batch_init(capacity, 0, 1)
        self._tokens = np.ctypeslib.as_array(self.raw.token, (capacity,))
        self._positions = np.ctypeslib.as_array(self.raw.pos, (capacity,))
        self._logits = np.ctypeslib.as_array(self.raw.logits, (capacity,))
        self._steps = np.arange(capacity, dtype=np.int32)
        np.ctypeslib.as_array(self.raw.n_seq_id, (capacity,))[:] = 1
        for index in range(capacity):
            self.raw.seq_id[index][0] = 0
        self._together = 0  # tokens that may belong to other sequences than the first

    def fill(self, ids: Sequence[int], position: int, rows: Sequence[int] | slice) -> Any:
        """Consecutive tokens of the first sequence.

        Args:
            ids: at most as many as the capacity.
            position: of the first.
            rows: the indices of the tokens after which there are to be logits.

        Returns:
            The ``llama_batch``, for ``llama_decode``.
        """
        count = self._begin(ids)
        np.add(self._steps[:count], position, out=self._positions[:count])
        for index in range(self._together):
            self.raw.seq_id[index][0] = 0
        self._together = 0
        self._logits[:count] = 0
        self._logits[:count][rows] = 1
        return self.raw

    def fill_together(self, ids: Sequence[int], position: int) -> Any:
        """The next token of several sequences, each at the same position, with logits after each."""
        count = self._begin(ids)
        self._positions[:count] = position
        for index in range(count):
            self.raw.seq_id[index][0] = index
        self._together = max(self._together, count)
        self._logits[:count] = 1
        return self.raw

    def _begin(self, ids: Sequence[int]) -> int:
        count = len(ids)
        self.raw.n_tokens = count
        self._tokens[:count] = ids
        return count

    def free(self) -> None:
        """Free the memory. Freeing twice does nothing."""
        if self.raw is not None:
            self._api.llama_batch_free(self.raw)
        self.raw = None


class LogitsView:
    """The logits of the last evaluation, without a copy: an array over libllama's own memory."""

    def __init__(self) -> None:
        self._key: tuple[int, int] | None = None
        self._array: npt.NDArray[np.float32] | None = None

    def of(self, pointer: Any, rows: int, columns: int) -> npt.NDArray[np.float32]:
        """Float32 ``[rows, columns]`` at ``pointer``, valid until the next evaluation."""
        key = (ctypes.addressof(pointer.contents), rows)
        if self._array is None or key != self._key:
            memory = (ctypes.c_float * (rows * columns)).from_address(key[0])
            self._key, self._array = key, np.ctypeslib.as_array(memory).reshape(rows, columns)
        return self._array
