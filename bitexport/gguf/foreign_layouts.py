"""Layouts of others that go by a number which means something else here: what a wrong size hints at.

I2_S of this package has n / 4 bytes of codes and 32 bytes at the end, for the scale of the tensor. Number 36
is used for other things as well, and Microsoft's build of llama.cpp has three more types whose numbers
upstream gave up or gave away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from bitexport.gguf.types import I2_S_ID

#: numbers in Microsoft's build.
I8_S, TL1, TL2 = 37, 38, 39

FOREIGN = {
    I8_S: "I8_S, Microsoft's type of 8-bit activations, which no weights have",
    TL1: "TL1, Microsoft's layout for the table look-ups of one ARM machine",
    TL2: "TL2, Microsoft's layout for the table look-ups of one x86 machine",
}

ADVICE = "convert the checkpoint, or take another file of the model"


def unknown_type(number: int) -> str:
    """What is known of a type that this package cannot read, as the end of an error."""
    if number in FOREIGN:
        return f": it is {FOREIGN[number]}; {ADVICE}"
    return ", which this version does not know"


def other_layout(number: int, shape: Sequence[int], room: int) -> str:
    """Which layout a tensor may be that has ``room`` bytes, padding included; empty where nothing fits."""
    if number == TL2:
        return f": perhaps it is {FOREIGN[TL2]}; {ADVICE}"
    if number != I2_S_ID:
        return ""
    count = math.prod(shape)
    rows = count // max(shape[-1], 1)
    sizes = (
        (count // 4, "codes without a scale, which some converters keep in a tensor of its own"),
        (count // 4 + 4 * rows, "codes and a float32 scale for each row"),
        (count // 4 + 2 * rows, "codes and a float16 scale for each row"),
        (count // 128 * 34, "blocks of 128 with a float16 scale each"),
        (count // 128 * 36, "blocks of 128 with a float32 scale each"),
        (count // 64 * 18, "blocks of 64 with a float16 scale each, as in Q2_0"),
        (count // 2, "four bits a weight"),
        (count, "a byte a weight"),
    )
    layouts = [layout for size, layout in sizes if room in (size, size + -size % 32)]
    if not layouts:
        return ""
    return f": that is the size of another layout under number 36, {' or '.join(layouts)}; {ADVICE}"


def small_blocks(number: int, shape: Sequence[int]) -> str:
    """Why elements that fill no block of 128 may be no damage."""
    if number == I2_S_ID and math.prod(shape) % 64 == 0:
        return (
            ": it may be the layout with blocks of 64, which Microsoft's code writes on ARM under the same "
            f"number; {ADVICE}"
        )
    return ""
