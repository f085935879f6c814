"""Finds the strings of an array in a GGUF file, many at a time: a vocabulary has hundreds of thousands.

Each string is its length, 8 bytes, little-endian, and its bytes. So a string begins where the one before it
ends, and a loop over them takes a third of a second. But the length of a short string is one byte and seven
zeros, which hardly occur inside a text: all such places are found at once, and a place is taken for a string
only if the string before it ends there.
"""

from __future__ import annotations

import struct

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
    breaks = np.flatnonzero(starts != np.concatenate(([0], ends[:-1])))
    ends = at + ends[: min(breaks[0] if len(breaks) else len(ends), most)]
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
