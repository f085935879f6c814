"""docs/i2_s.md: its example is what we pack and read."""

from __future__ import annotations

import re

import numpy as np

from bitexport.gguf.packers import i2_s
from bitexport.gguf.types import I2_S, MAX_I2_S_ROW
from bitexport.ternary import TernaryTensor
from tests.support.repository import REPOSITORY

PAGE = (REPOSITORY / "docs" / "i2_s.md").read_text(encoding="utf-8")


def block(kind: str) -> str:
    (found,) = re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def test_the_example() -> None:
    trits = np.array(["-0+".index(sign) - 1 for sign in block("trits") if sign in "-0+"], dtype=np.int8)
    (scale,) = re.findall(r"two rows of 128, scale ([\d.]+)", PAGE)
    lines = [line.split() for line in block("bytes").splitlines()]
    assert [int(offset, 16) for offset, *_ in lines] == list(range(0, 96, 16))
    expected = bytes(int(byte, 16) for _, *values in lines for byte in values)
    packed = i2_s.pack(TernaryTensor(trits.reshape(2, 128), np.float32(scale)))
    assert packed.tobytes() == expected
    back = i2_s.unpack(np.frombuffer(expected, np.uint8), (2, 128))
    np.testing.assert_array_equal(back.trits.reshape(-1), trits)
    assert back.scale == np.float32(scale)


def test_the_numbers_on_the_page() -> None:
    assert f"tensor type **{I2_S.id}**" in PAGE
    assert f"at most {MAX_I2_S_ROW:,} weights" in PAGE
    assert I2_S.nbytes((2, 128)) == 2 * 128 // 4 + 32
