"""Foreign layouts that share our type numbers, recognised by size.

An I2_S tensor has n / 4 bytes of codes and 32 bytes at the end, for its scale. Other projects use number 36
for other layouts, and Microsoft's build of llama.cpp has three more types whose numbers upstream removed or
assigned to other types.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from bitexport.gguf.types import I2_S_ID

#: Type numbers in Microsoft's build.
I8_S, TL1, TL2 = 37, 38, 39

FOREIGN = {
    I8_S: "I8_S, Microsoft's type of 8-bit activations, which is not used for weights",
    TL1: "TL1, Microsoft's lookup-table layout, tuned for one ARM machine",
    TL2: "TL2, Microsoft's lookup-table layout, tuned for one x86 machine",
}

ADVICE = "convert the checkpoint, or use another file of the model"


def unknown_type(number: int) -> str:
    """A description of a type that this package cannot read, as the end of an error message."""
    if number in FOREIGN:
        return f": it is {FOREIGN[number]}; {ADVICE}"
    return ", which this version does not know"


def other_layout(number: int, shape: Sequence[int], room: int) -> str:
    """The layouts that a tensor of ``room`` bytes may have, as the end of an error message.

    Args:
        number: the number of its type.
        shape: its dimensions, outermost first.
        room: its bytes, including padding.

    Returns:
        Empty if no known layout has that size.
    """
    if number == TL2:
        return f": it may be {FOREIGN[TL2]}; {ADVICE}"
    if number != I2_S_ID:
        return ""
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
    layouts = [layout for size, layout in sizes if room in (size, size + -size % 32)]
    if not layouts:
        return ""
    return f": that is the size of another layout under number 36, {' or '.join(layouts)}; {ADVICE}"


def small_blocks(number: int, shape: Sequence[int]) -> str:
    """A description of the layout with blocks of 64, for tensors that are not a multiple of 128."""
    if number == I2_S_ID and math.prod(shape) % 64 == 0:
        return (
            ": it may be the layout with blocks of 64, which Microsoft's code writes on ARM under the same "
            f"number; {ADVICE}"
        )
    return ""
