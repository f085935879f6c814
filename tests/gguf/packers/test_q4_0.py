"""Q4_0 of trits, a type of bench's twins."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from bitexport.errors import UnsupportedError
from bitexport.gguf.packers import ALL_PACKERS, PACKERS, q4_0
from bitexport.ternary import GroupedTernary, TernaryTensor


def random_trits(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-1, 2, shape, dtype=np.int8)


def test_it_is_not_offered() -> None:
    assert ALL_PACKERS.keys() - PACKERS.keys() == {"q4_0", "f32"}


def test_it_stores_trits_and_a_float16_scale_exactly() -> None:
    trits = random_trits(6, 96)
    packed = q4_0.pack(TernaryTensor(trits, np.float32(0.0371)))
    read = gguf.quants.dequantize(packed.reshape(6, -1), gguf.GGMLQuantizationType.Q4_0)
    np.testing.assert_array_equal(read, trits * np.float32(np.float16(0.0371)))


def test_round_trip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(q4_0, "CHUNK_BLOCKS", 5)
    tensor = TernaryTensor(random_trits(6, 96), np.float32(0.5))
    back = q4_0.unpack(q4_0.pack(tensor), (6, 96))
    assert isinstance(back, TernaryTensor)
    assert back.scale == tensor.scale
    np.testing.assert_array_equal(back.trits, tensor.trits)


def test_what_it_cannot_store() -> None:
    packed = q4_0.pack(TernaryTensor(random_trits(1, 32), np.float32(1)))
    packed[5] = 0x5F
    with pytest.raises(UnsupportedError, match="codes other than 7, 8 and 9"):
        q4_0.unpack(packed, (1, 32))
    with pytest.raises(UnsupportedError, match=r"rows of 48 are .* multiple of 32, which q4_0 needs"):
        q4_0.pack(TernaryTensor(random_trits(2, 48), np.float32(1)))
    groups = GroupedTernary(random_trits(2, 64), np.array([[1.0], [2.0]], np.float32))
    with pytest.raises(UnsupportedError, match="scale changes every 64 weights"):
        q4_0.pack(groups)
