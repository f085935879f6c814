"""Types of other projects: bytes of their own quantizers, bytes by hand, and an independent writer."""

from __future__ import annotations

import numpy as np
import pytest

from bitexport.errors import GGUFError, GGUFScaleError, UnsupportedError
from bitexport.gguf.foreign_types import READABLE
from bitexport.gguf.packers import FOREIGN_UNPACKERS
from bitexport.ternary import GroupedTernary, TernaryTensor
from tests.support.foreign_packers import PACKS, STQ1_0_PATTERNS, example

#: What the quantizers of ik_llama.cpp 8337e4c (iqk_quantize.cpp, built from source) write for
#: ``np.random.default_rng(7).integers(-1, 2, (4, 64))`` with the scales 1, 0.5, 2 and 0.25.
OF_IK = {
    "iq1_bn": (
        "003ca37cfd7a187056096b4a3d0f4e0038b616dc9521473bc8cf2d7c9b2700400dbdf9132ab68172126e9417120034a10aa8"
        "17b9f6fecb7a393d1e2c"
    ),
    "iq2_bn": (
        "0000803f45884286152464098101a44a6a0216a20000003f2188416806060442546015644699625100000040a05199105082"
        "46059452266096020a1a0000803e122629a2210454059028582a065a1956"
    ),
    "iq2_bn_r4": (
        "0000803f0000003f000000400000803e959082a68948914880a9a984868241a685065429548614125000968440a5a6648408"
        "68801260906256112161196256626102259250924155a619061020401442"
    ),
}
BYTES_OF_IK = {name: np.frombuffer(bytes.fromhex(text), np.uint8) for name, text in OF_IK.items()}


@pytest.mark.parametrize("name", OF_IK)
def test_bytes_of_ik_llama_cpp(name: str) -> None:
    trits = np.random.default_rng(7).integers(-1, 2, (4, 64), dtype=np.int8)
    scales = np.array([[1], [0.5], [2], [0.25]], np.float32)
    assert PACKS[name](trits, scales) == bytes.fromhex(OF_IK[name])
    found = FOREIGN_UNPACKERS[name](BYTES_OF_IK[name], (4, 64))
    assert isinstance(found, GroupedTernary)
    np.testing.assert_array_equal(found.trits, trits)
    np.testing.assert_array_equal(found.scales, scales)


def test_iq2_bn_by_hand() -> None:
    data = np.full(20, 0b01010101, np.uint8)  # zeros
    data[:4] = np.frombuffer(np.float32(0.75).tobytes(), np.uint8)
    data[4 + 3] = 0b01_10_00_10  # elements 3, 19, 35, 51: +1, -1, +1, 0
    found = FOREIGN_UNPACKERS["iq2_bn"](data, (1, 64))
    assert isinstance(found, TernaryTensor)
    assert found.scale == 0.75
    assert {int(i): int(found.trits[0, i]) for i in np.flatnonzero(found.trits)} == {3: 1, 19: -1, 35: 1}


def test_iq1_bn_by_hand() -> None:
    data = np.zeros(15, np.uint8)
    data[:2] = (0x00, 0x3C)  # 1.0
    zeros = -(-(1 + 3 + 9 + 27 + 81) * 256 // 243)
    data[2:] = zeros
    data[2 + 4] = -(-(2 + 3 + 9 + 27 + 0) * 256 // 243)  # elements 21 to 25: +1, 0, 0, 0, -1
    data[2 + 12] = -(-(1 + 3 + 18 + 0) * 256 // 243)  # elements 15, 31, 47, 63: 0, 0, +1, -1
    found = FOREIGN_UNPACKERS["iq1_bn"](data, (1, 64))
    assert {int(i): int(found.trits[0, i]) for i in np.flatnonzero(found.trits)} == {
        21: 1,
        25: -1,
        47: 1,
        63: -1,
    }


def test_stq1_0_by_hand() -> None:
    """The example of pull request 22836: code 0 is (0, +1, +1, +1), and with a sign (0, -1, -1, -1)."""
    data = np.zeros(42, np.uint8)
    data[32] = 0b10  # the sign of group 1
    data[40:] = (0x00, 0x40)  # 2.0
    found = FOREIGN_UNPACKERS["stq1_0"](data, (1, 256))
    assert isinstance(found, TernaryTensor)
    assert found.scale == 2
    assert found.trits[0, [0, 16, 32, 48]].tolist() == [0, 1, 1, 1]
    assert found.trits[0, [1, 17, 33, 49]].tolist() == [0, -1, -1, -1]
    for index, pattern in enumerate(STQ1_0_PATTERNS):
        data[0], data[32] = index & 15, index >> 4
        lanes = FOREIGN_UNPACKERS["stq1_0"](data, (1, 256)).trits[0, [0, 16, 32, 48]].tolist()
        assert lanes == [(pattern >> 2 * p & 3) - 1 for p in range(4)]


def test_ptq1_0_by_hand() -> None:
    zeros = -(-(1 + 3 + 9 + 27 + 81) * 256 // 243)
    data = np.full(28, zeros, np.uint8)
    data[24:26] = -(-(3 + 9 + 27 + 81) * 256 // 243)
    data[26:] = (0x00, 0x38)  # 0.5
    data[1] = -(-(162 + 27 + 9 + 3 + 0) * 256 // 243)  # elements 1, 17, 33, 49, 65: +1, 0, 0, 0, -1
    data[17] = -(-(0 + 27 + 9 + 3 + 1) * 256 // 243)  # element 81: -1
    data[25] = -(-(81 + 27 + 9 + 6) * 256 // 243)  # elements 121, 123, 125, 127: 0, 0, 0, +1
    found = FOREIGN_UNPACKERS["ptq1_0"](data, (1, 128))
    assert {int(i): int(found.trits[0, i]) for i in np.flatnonzero(found.trits)} == {
        1: 1,
        65: -1,
        81: -1,
        127: 1,
    }


def test_i2_s_with_row_scales_by_hand() -> None:
    """Two experts of 3 x 128: 96 bytes of codes, 12 of scales, 20 of padding each."""
    data = np.full((2, 128), 0b01010101, np.uint8)
    data[:, 96:] = 0
    data[:, 96:108] = np.frombuffer(np.array([1, 0, 4], np.float32).tobytes(), np.uint8)
    data[1, 0] = 0b10_01_00_01  # row 3, elements 0 and 64: +1 and -1
    data[1, 64 + 31] = 0b01_01_01_10  # row 5, element 127: +1
    found = FOREIGN_UNPACKERS["i2_s_row_scale"](data.reshape(-1), (2, 3, 128))
    assert isinstance(found, GroupedTernary)
    assert found.scales.tolist() == [[0], [0], [0], [1], [0], [4]]
    assert [tuple(map(int, place)) for place in np.argwhere(found.trits)] == [(3, 0), (3, 64), (5, 127)]
    assert (found.trits[3, 64], found.trits[5, 127]) == (-1, 1)


@pytest.mark.parametrize("kind", READABLE, ids=lambda kind: kind.name)
@pytest.mark.parametrize(("rows", "columns"), [(4, 256), (12, 768)])
def test_every_type_as_its_tool_writes_it(kind, rows: int, columns: int) -> None:  # type: ignore[no-untyped-def]
    trits, scales = example(kind.name, rows, columns)
    data = np.frombuffer(PACKS[kind.name](trits, scales), np.uint8)
    assert data.size == kind.nbytes((rows, columns))
    found = FOREIGN_UNPACKERS[kind.name](data, (rows, columns))
    np.testing.assert_array_equal(found.trits, trits)
    expected = trits * np.repeat(scales, columns // scales.shape[1], axis=1)
    np.testing.assert_array_equal(found.dequantize(), expected)
    # equal scales become one
    same = np.frombuffer(PACKS[kind.name](trits, np.full_like(scales, 0.5)), np.uint8)
    found = FOREIGN_UNPACKERS[kind.name](same, (rows, columns))
    assert isinstance(found, TernaryTensor)
    assert found.scale == 0.5
    # experts are stacked
    if kind.name != "i2_s_row_scale":
        stacked = FOREIGN_UNPACKERS[kind.name](data, (rows // 4, 4, columns))
        np.testing.assert_array_equal(stacked.dequantize(), expected)


@pytest.mark.parametrize("kind", READABLE, ids=lambda kind: kind.name)
def test_bad_scales_and_codes(kind) -> None:  # type: ignore[no-untyped-def]
    trits, scales = example(kind.name, 4, 256)
    for bad in (-1.0, np.nan, np.inf):
        scales[1, 0] = bad
        data = np.frombuffer(PACKS[kind.name](trits, scales), np.uint8)
        with pytest.raises(GGUFScaleError, match=str(abs(bad))):
            FOREIGN_UNPACKERS[kind.name](data, (4, 256))
    if kind.name not in ("iq1_bn", "ptq1_0", "stq1_0"):  # which have a trit for every code
        data = np.frombuffer(PACKS[kind.name](trits, np.ones_like(scales)), np.uint8).copy()
        data[20 if kind.name != "i2_s_row_scale" else 0] |= 0b11
        with pytest.raises((GGUFError, UnsupportedError), match="a code of 3"):
            FOREIGN_UNPACKERS[kind.name](data, (4, 256))
