"""Several examples in a row: nearly no padding, and one shape for every micro-batch."""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np

from bitexport.train.data.examples import Ids


def pack(order: Ids, lengths: Ids, width: int) -> list[list[int]]:
    """Rows of at most ``width`` tokens from all examples of ``order``.

    The longest example that is left goes into the fullest row that has room for it (best fit decreasing).
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens that are free, number of the row), sorted
    decreasing = order[np.argsort(-lengths[order], kind="stable")]
    for index, length in zip(decreasing.tolist(), lengths[decreasing].tolist(), strict=True):
        place = bisect_left(room, (length, 0))
        if place == len(room):
            rows.append([index])
            free, row = width, len(rows) - 1
        else:
            free, row = room.pop(place)
            rows[row].append(index)
        if free > length:
            insort(room, (free - length, row))
    return rows


def padding(rows: list[list[int]], lengths: Ids, width: int) -> float:
    """The part of the rows that no example fills, 0 to 1."""
    used = sum(int(lengths[row].sum()) for row in rows)
    return 1 - used / max(1, len(rows) * width)
