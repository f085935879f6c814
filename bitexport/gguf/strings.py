"""Finds the strings of an array in a GGUF file, many at a time: a vocabulary has hundreds of thousands.

Each string is its length, 8 bytes, little-endian, and its bytes. So a string begins where the one before it
ends, and a loop over them takes a third of a second. But the length of a short string is one byte and seven
zeros, which hardly occur inside a text: all such places are found at once, and a place is taken for a string
only if the string before it ends there.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

_LENGTH = struct.Struct("<Q")
_SHORT = 256

#: Bytes that are searched at once.
_WINDOW = 1 << 20

#: More bytes than an ordinary token or merge takes, its length included.
_TYPICAL = 64

#: If a window has fewer short strings in a row, this many of the next strings are walked one by one.
_FEW, _STEPS = 1_000, 4_096

#: More bytes than any vocabulary has; comparing them at once takes many times their memory.
_HASHED_BYTES = 32 << 20


def string_starts(data: npt.NDArray[np.uint8], start: int, count: int) -> npt.NDArray[np.int64]:
    """Where strings begin, and where the last one ends.

    Args:
        data: the bytes of the file, uint8, shape ``[size]``.
        start: the position of the first string.
        count: how many there are; at most an eighth of the file's bytes.

    Returns:
        int64, shape ``[count + 1]``; shorter if a string goes beyond the end of the file: the last one is
        then the position of that string.
    """
    found = np.empty(count + 1, np.int64)
    found[0] = start
    done = 0
    while done < count:
        ends = _short_strings(data, int(found[done]), count - done)
        if len(ends) < min(_FEW, count - done):
            ends = _walk(data, int(found[done]), min(_STEPS, count - done))
        if not len(ends):
            break
        found[done + 1 : done + 1 + len(ends)] = ends
        done += len(ends)
    return found[: done + 1]


def _short_strings(data: npt.NDArray[np.uint8], at: int, most: int) -> npt.NDArray[np.int64]:
    """The ends of the next strings, up to one that is not short or to the end of a window."""
    window = data[at : at + min(_WINDOW, most * _TYPICAL)]
    if len(window) < _LENGTH.size:
        return np.empty(0, np.int64)
    numbers = np.ndarray(len(window) - _LENGTH.size + 1, "<u8", window, strides=(1,))
    starts = np.flatnonzero(numbers < _SHORT)
    ends = starts + _LENGTH.size + window[starts]
    if not len(starts) or starts[0] != 0:
        return np.empty(0, np.int64)
    breaks = np.flatnonzero(starts[1:] != ends[:-1])
    ends = at + ends[: min(breaks[0] + 1 if len(breaks) else len(ends), most)]
    return ends[ends <= len(data)]


def _walk(data: npt.NDArray[np.uint8], at: int, most: int) -> npt.NDArray[np.int64]:
    """The ends of the next strings, one by one; fewer if one goes beyond the end of the file."""
    view, size = data.data, len(data)
    ends = []
    for _ in range(most):
        if at + _LENGTH.size > size:
            break
        at += _LENGTH.size + _LENGTH.unpack_from(view, at)[0]
        if at > size:
            break
        ends.append(at)
    return np.array(ends, np.int64)


class Texts(Sequence[bytes]):
    """The strings of an array, which become objects only when they are asked for.

    Args:
        raw: the array's bytes.
        starts: where each begins in them, and where the last one ends.

    Attributes:
        lengths: the bytes of each, int64.
    """

    def __init__(self, raw: bytes, starts: npt.NDArray[np.int64]) -> None:
        self._raw = raw
        self._begins = starts[:-1] + _LENGTH.size
        self.lengths = starts[1:] - self._begins

    def __len__(self) -> int:
        return len(self._begins)

    @overload
    def __getitem__(self, number: int) -> bytes: ...

    @overload
    def __getitem__(self, number: slice) -> list[bytes]: ...

    def __getitem__(self, number: int | slice) -> bytes | list[bytes]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        begin = int(self._begins[number])
        return self._raw[begin : begin + int(self.lengths[number])]

    def has_zeros(self) -> bool:
        """Whether there is a byte 0 in one of them."""
        data = np.frombuffer(self._raw, np.uint8)
        zeros_of_lengths = self.lengths.view(np.uint8)  # the same 8 bytes, on a little-endian machine
        return int(np.count_nonzero(data == 0)) != int(np.count_nonzero(zeros_of_lengths == 0))

    def surely_differ(self) -> bool:
        """Whether all of them are different. False if two are equal, and by coincidence hardly ever."""
        if len(self._raw) > _HASHED_BYTES:
            return False
        data = np.frombuffer(self._raw, np.uint8)
        longest = int(self.lengths.max(initial=0))
        weights, salts = np.frombuffer(os.urandom(16 * (longest + 1)), np.uint64).reshape(2, -1)
        hashes = np.empty(len(self), np.uint64)
        for length in np.flatnonzero(np.bincount(self.lengths)).tolist():
            chosen = np.flatnonzero(self.lengths == length)
            rows = data[self._begins[chosen, None] + np.arange(length)]
            hashes[chosen] = rows.astype(np.uint64) @ weights[:length] + salts[length]
        hashes.sort()
        return bool(np.all(hashes[1:] != hashes[:-1]))
