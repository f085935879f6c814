"""I2_S bytes: by hand, against a packer written from the format's description, and round trips."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitexport.errors import GGUFError, UnsupportedError
from bitexport.gguf.packers import i2_s
from bitexport.ternary import TernaryTensor


def described_bytes(trits: list[list[int]], scale: float) -> bytes:
    """The format as described, one element at a time, written independently of our code."""
    flat = [trit for row in trits for trit in row]
    assert len(flat) % 128 == 0
    result = bytearray()
    for block in range(len(flat) // 128):
        for j in range(32):
            byte = 0
            for place, bit in ((0, 6), (32, 4), (64, 2), (96, 0)):
                code = {-1: 0, 0: 1, 1: 2}[flat[128 * block + j + place]]
                byte |= code << bit
            result.append(byte)
    for _ in range(8):
        result += struct.pack("<f", scale)
    return bytes(result)


def tensor(trits: np.ndarray, scale: float = 1.0) -> TernaryTensor:
    return TernaryTensor(trits.astype(np.int8), np.float32(scale))


def test_one_block_by_hand() -> None:
    trits = np.zeros((1, 128), dtype=np.int8)
    # byte 0: elements 0, 32, 64, 96 are +1, -1, 0, +1 -> codes 2, 0, 1, 2 -> 10 00 01 10
    trits[0, [0, 32, 64, 96]] = [1, -1, 0, 1]
    # byte 31: the last element of each quarter, all -1 -> 0
    trits[0, [31, 63, 95, 127]] = -1
    expected = bytes([0b10000110] + [0b01010101] * 30 + [0]) + b"\x00\x00\x20\x40" * 8  # 2.5
    assert i2_s.pack(tensor(trits, 2.5)).tobytes() == expected


def test_a_block_continues_in_the_next_row() -> None:
    trits = np.zeros((2, 64), dtype=np.int8)
    trits[1, 0] = 1  # element 64 of the block: bits 3-2 of byte 0
    assert i2_s.pack(tensor(trits))[0] == 0b01011001


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    shape=st.sampled_from([(1, 128), (2, 64), (4, 96), (3, 128), (2, 576), (32, 4), (5, 256)]),
    scale=st.floats(2**-120, 2**120, width=32),
)
def test_agrees_with_the_description_and_round_trips(
    data: st.DataObject, shape: tuple[int, int], scale: float
) -> None:
    trits = data.draw(hnp.arrays(np.int8, shape, elements=st.integers(-1, 1)))
    packed = i2_s.pack(tensor(trits, scale))
    assert packed.dtype == np.uint8
    assert packed.shape == (trits.size // 4 + 32,)
    assert packed.tobytes() == described_bytes(trits.tolist(), scale)
    back = i2_s.unpack(packed, shape)
    np.testing.assert_array_equal(back.trits, trits)
    assert back.scale == np.float32(scale)


def test_more_blocks_than_a_chunk() -> None:
    rng = np.random.default_rng(0)
    trits = rng.integers(-1, 2, (i2_s.CHUNK_BLOCKS + 3, 256), dtype=np.int8)
    packed = i2_s.pack(tensor(trits, 0.25))
    np.testing.assert_array_equal(i2_s.unpack(packed, (len(trits), 256)).trits, trits)
    start, stop = i2_s.CHUNK_BLOCKS - 2, i2_s.CHUNK_BLOCKS + 2  # rows around the end of a chunk
    expected = described_bytes(trits[start // 2 : stop // 2].tolist(), 0.25)[:-32]
    assert packed[start // 2 * 64 : stop // 2 * 64].tobytes() == expected


def test_trits_that_are_not_contiguous() -> None:
    trits = np.zeros((128, 2), dtype=np.int8)
    trits[0] = [1, -1]
    np.testing.assert_array_equal(i2_s.pack(tensor(trits.T)), i2_s.pack(tensor(trits.T.copy())))


def test_only_the_first_scale_counts() -> None:
    packed = i2_s.pack(tensor(np.ones((1, 128)), 0.5))
    packed[-28:] = 0
    assert i2_s.unpack(packed, (1, 128)).scale == np.float32(0.5)


def test_tensors_that_cannot_be_packed() -> None:
    with pytest.raises(UnsupportedError, match=r"96 elements.*not a multiple of 128"):
        i2_s.pack(tensor(np.zeros((1, 96))))
    with pytest.raises(ValueError, match="trit"):
        i2_s.pack(tensor(np.full((1, 128), 2)))
    with pytest.raises(ValueError, match="trit"):
        i2_s.pack(tensor(np.full((1, 128), -2)))


@pytest.mark.parametrize("byte", [0b11010101, 0b01110101, 0b01011101, 0b01010111])
def test_a_code_of_three_is_an_error_at_every_position(byte: int) -> None:
    packed = i2_s.pack(tensor(np.zeros((2, 128))))
    packed[40] = byte
    with pytest.raises(GGUFError, match="code of 3"):
        i2_s.unpack(packed, (2, 128))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_an_invalid_scale(scale: float) -> None:
    packed = i2_s.pack(tensor(np.zeros((1, 128))))
    packed[32:36] = np.frombuffer(struct.pack("<f", scale), np.uint8)
    with pytest.raises(GGUFError, match="scale"):
        i2_s.unpack(packed, (1, 128))


def test_a_wrong_length() -> None:
    packed = i2_s.pack(tensor(np.zeros((1, 128))))
    for data in (packed[:-1], packed[:32], np.append(packed, np.uint8(0))):
        with pytest.raises(GGUFError, match="128 / 4 \\+ 32"):
            i2_s.unpack(data, (1, 128))
    with pytest.raises(GGUFError):
        i2_s.unpack(packed, (1, 100))
