"""Which GGUF type a ternary tensor gets when the user names none."""

from __future__ import annotations

import pytest

from bitexport.gguf.types import smallest_exact


@pytest.mark.parametrize(
    ("shape", "group", "expected"),
    [
        ((512, 512), None, "i2_s"),
        ((512, 576), None, "i2_s"),  # blocks straddle rows, which our runtime reads
        ((512, 512), 512, "tq1_0"),  # one scale per row
        ((512, 512), 256, "tq1_0"),
        ((512, 512), 128, "q2_0"),
        ((512, 512), 64, "q2_0"),
        ((512, 576), 576, "q2_0"),
        ((512, 512), 32, "f16"),
        ((512, 100), 100, "f16"),
        ((3, 9), None, "f16"),  # 27 weights are not a multiple of 128
        ((8, 512, 512), None, "i2_s"),  # experts
        ((8, 512, 512), 512, "tq1_0"),
        ((32, 30, 130), None, "f16"),  # an expert is not a whole number of blocks
        ((2, 2, 512, 512), None, "tq1_0"),
    ],
)
def test_smallest_exact(shape: tuple[int, ...], group: int | None, expected: str) -> None:
    assert smallest_exact(shape, group).name == expected
