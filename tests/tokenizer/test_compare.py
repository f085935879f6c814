"""Where two lists of ids first differ."""

from __future__ import annotations

import pytest

from bitexport.tokenizer.compare import first_difference


@pytest.mark.parametrize(
    ("expected", "found", "index"),
    [([1, 2, 3], [1, 5, 3], 1), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 2], 2), ([], [4], 0)],
)
def test_first_difference(expected: list[int], found: list[int], index: int) -> None:
    assert first_difference(expected, found) == index
