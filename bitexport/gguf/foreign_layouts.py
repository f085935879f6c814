"""Foreign layouts that share I2_S's number, recognised by size.

An I2_S tensor has n / 4 bytes of codes and 32 bytes at the end, for its scale. Other projects use number 36
for other layouts. Types with numbers and names of their own are in :mod:`bitexport.gguf.foreign_types`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from bitexport.gguf.foreign_types import ANOTHER, Room, other_type
from bitexport.gguf.types import I2_S_ID


def other_layout(number: int, room: Room, alignment: int) -> str:
    """The layouts that a tensor may have whose type does not have its size, as the end of an error message.

    Args:
        number: the number of its type.
        room: its place in the file.
        alignment: of the tensors' positions in the file.

    Returns:
        Empty if no known layout has that size.
    """
    if number != I2_S_ID:
        return other_type(number, room, alignment)
    shape = room.shape
    count = math.prod(shape)
    rows = count // max(shape[-1], 1)
    sizes = (
        (count // 4, "codes without a scale, which some converters store in a separate tensor"),
        (count // 4 + 4 * rows, "codes and a float32 scale for each row"),
        (count // 4 + 2 * rows, "codes and a float16 scale for each row"),
        (count // 128 * 34, "blocks of 128 with a float16 scale each"),
        (count // 128 * 36, "blocks of 128 with a float32 scale each"),
        (count // 64 * 18, "blocks of 64 with a float16 scale each, as in Q2_0"),
        (count // 2, "four bits per weight"),
        (count, "one byte per weight"),
    )
    layouts = [layout for size, layout in sizes if room.nbytes in (size, size + -size % 32)]
    if not layouts:
        return other_type(number, room, alignment)
    return f": that is the size of another layout under number 36, {' or '.join(layouts)}; {ANOTHER}"


def small_blocks(number: int, shape: Sequence[int]) -> str:
    """A description of the layout with blocks of 64, for tensors that are not a multiple of 128."""
    if number == I2_S_ID and math.prod(shape) % 64 == 0:
        return (
            ": it may be the layout with blocks of 64, which Microsoft's code writes on ARM under the same "
            f"number; {ANOTHER}"
        )
    return ""
