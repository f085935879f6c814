"""TQ2_0 bytes, compared with the gguf package's NumPy version and ggml's C code."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitexport.errors import UnsupportedError
from bitexport.gguf.packers import tq2_0
from bitexport.ternary import TernaryTensor

PEER = gguf.GGMLQuantizationType.TQ2_0


def test_one_block_by_hand() -> None:
    trits = np.zeros((1, 256), dtype=np.int8)
    trits[0, [0, 32, 64, 96]] = [1, -1, 0, 1]  # byte 0, lowest bits first: 10 01 00 10
    trits[0, 128 + 5] = -1  # byte 37
    packed = tq2_0.pack(TernaryTensor(trits, np.float32(1.5)))
    assert packed[0] == 0b10010010
    assert packed[37] == 0b01010100
    assert set(np.delete(packed[:64], [0, 37])) == {0b01010101}
    assert packed[64:].tobytes() == b"\x00\x3e"  # 1.5


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    shape=st.sampled_from([(1, 256), (3, 512), (2, 768)]),
    scale=st.floats(2**-14, 1000, width=32),
)
def test_the_gguf_package_reads_the_same_values(
    data: st.DataObject, shape: tuple[int, int], scale: float
) -> None:
    trits = data.draw(hnp.arrays(np.int8, shape, elements=st.integers(-1, 1)))
    packed = tq2_0.pack(TernaryTensor(trits, np.float32(scale)))
    values = gguf.quants.dequantize(packed.reshape(shape[0], -1), PEER)
    np.testing.assert_array_equal(values, trits.astype(np.float32) * np.float32(np.float16(scale)))


def test_the_same_bytes_as_both_quantizers() -> None:
    rng = np.random.default_rng(0)
    trits = rng.integers(-1, 2, (40, 1024), dtype=np.int8)
    trits[3, 256:512] = 0  # a block without a nonzero
    weights = trits.astype(np.float32) * np.float32(0.0375)
    packed = tq2_0.pack(TernaryTensor(trits, np.float32(0.0375))).reshape(40, -1)
    np.testing.assert_array_equal(packed, gguf.quants.quantize(weights, PEER))

    from bitexport.runtime.ggml import quantize

    np.testing.assert_array_equal(packed, quantize(weights, "tq2_0"))


def test_more_blocks_than_a_chunk() -> None:
    trits = np.random.default_rng(1).integers(-1, 2, (tq2_0.CHUNK_BLOCKS + 1, 256), dtype=np.int8)
    packed = tq2_0.pack(TernaryTensor(trits, np.float32(1)))
    np.testing.assert_array_equal(gguf.quants.dequantize(packed.reshape(len(trits), -1), PEER), trits)


def test_tensors_that_cannot_be_packed() -> None:
    with pytest.raises(UnsupportedError, match="not a multiple of 256"):
        tq2_0.pack(TernaryTensor(np.zeros((2, 128), dtype=np.int8), np.float32(1)))
    for scale in (1e-9, 1e6):
        with pytest.raises(UnsupportedError, match="float16"):
            tq2_0.pack(TernaryTensor(np.zeros((1, 256), dtype=np.int8), np.float32(scale)))
