"""Every type for ternary tensors: bytes by hand, ggml's C code in both directions, and round trips."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitexport.errors import BitexportError, GGUFError, UnsupportedError
from bitexport.gguf.packers import PACKERS, f16, q2_0, tq1_0, tq2_0
from bitexport.gguf.types import TERNARY_KINDS, TYPES
from bitexport.ternary import AnyTernary, GroupedTernary, TernaryTensor
from tests.support.ggml_c import dequantized, quantized

BLOCK_TYPES = ("tq2_0", "tq1_0", "q2_0")


def random_trits(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1, 2, shape, dtype=np.int8)


def assert_same(found: AnyTernary, expected: AnyTernary) -> None:
    assert type(found) is type(expected)
    np.testing.assert_array_equal(found.trits, expected.trits)
    np.testing.assert_array_equal(found.dequantize(), expected.dequantize())


def test_the_table_and_the_types_agree() -> None:
    assert [packer.type for packer in PACKERS.values()] == list(TERNARY_KINDS)


def test_a_tq1_0_block_by_hand() -> None:
    trits = np.zeros((1, 256), dtype=np.int8)
    trits[0, [0, 32, 64, 96, 128]] = [1, -1, 0, 1, 1]  # byte 0: 2 0 1 2 2 in base 3
    trits[0, [175, 191, 207, 223, 239]] = -1  # byte 47, the last of the second part: 0
    trits[0, [241, 245, 249, 253]] = [1, 1, 1, -1]  # byte 49: 2 2 2 0 and a last digit of 0
    packed = tq1_0.pack(TernaryTensor(trits, np.float32(1.5)))
    number = 2 * 81 + 0 * 27 + 1 * 9 + 2 * 3 + 2
    assert packed[0] == ceil(number * 256 / 243)
    assert packed[47] == 0
    assert packed[49] == ceil((2 * 81 + 2 * 27 + 2 * 9) * 256 / 243)
    # all zeros: 1 1 1 1 1 is 121; the last four bytes have four digits: 1 1 1 1 0 is 120
    assert set(np.delete(packed[:48], [0, 47])) == {ceil(121 * 256 / 243)} == {128}
    assert set(packed[[48, 50, 51]]) == {ceil(120 * 256 / 243)} == {127}
    assert packed[52:].tobytes() == b"\x00\x3e"  # 1.5
    assert packed.size == 54


def test_a_q2_0_block_by_hand() -> None:
    trits = np.zeros((1, 64), dtype=np.int8)
    trits[0, [0, 1, 2, 3]] = [1, -1, 0, 1]  # byte 0, lowest bits first: 10 01 00 10
    trits[0, 63] = -1  # the highest bits of the last byte
    packed = q2_0.pack(TernaryTensor(trits, np.float32(0.25)))
    assert packed[:2].tobytes() == b"\x00\x34"  # 0.25 comes first
    assert packed[2] == 0b10010010
    assert packed[17] == 0b00010101
    assert set(packed[3:17]) == {0b01010101}
    assert packed.size == 18


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_the_same_bytes_as_ggml(kind: str) -> None:
    trits = random_trits(41, 1280)
    trits[3, 256:512] = 0  # blocks without a nonzero
    trits[5] = 1
    trits[6] = -1
    tensor = TernaryTensor(trits, np.float32(0.0375))
    packed = PACKERS[kind].pack(tensor)
    np.testing.assert_array_equal(packed, quantized(tensor.dequantize(), kind))
    written = TernaryTensor(trits, np.float32(np.float16(0.0375)))
    np.testing.assert_array_equal(dequantized(packed, trits.shape, kind), written.dequantize())
    assert_same(PACKERS[kind].unpack(packed, trits.shape), written)


def test_every_byte_of_tq1_0_is_read_as_ggml_reads_it() -> None:
    data = np.zeros((256, 54), dtype=np.uint8)
    data[:, :52] = np.arange(256, dtype=np.uint8)[:, None]
    data[:, 52:] = np.frombuffer(np.float16(2).tobytes(), np.uint8)
    found = tq1_0.unpack(data.reshape(-1), (256, 256))
    np.testing.assert_array_equal(found.dequantize(), dequantized(data, (256, 256), "tq1_0"))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_round_trip(data: st.DataObject) -> None:
    packer = PACKERS[data.draw(st.sampled_from(sorted(PACKERS)))]
    out = data.draw(st.integers(1, 7))
    odd = packer.type.name == "f16"
    columns = data.draw(st.integers(1, 300)) if odd else packer.type.block * data.draw(st.integers(1, 5))
    if packer.type.name == "i2_s":  # the tensor is a multiple of the block, rows need not be
        out, columns = data.draw(st.sampled_from([(2, 64), (32, 4), (3, 128), (2, 576), (128, 5)]))
    trits = data.draw(hnp.arrays(np.int8, (out, columns), elements=st.integers(-1, 1)))
    scale = np.float32(data.draw(st.floats(2**-24, 65504, width=16)))
    packed = packer.pack(TernaryTensor(trits, scale))
    assert packed.dtype == np.uint8
    assert packed.size == packer.type.nbytes((out, columns))
    back = packer.unpack(packed, (out, columns))
    # the scale of a tensor that is all zeros is lost, except in I2_S
    np.testing.assert_array_equal(back.dequantize(), trits * scale)
    np.testing.assert_array_equal(back.trits, trits)
    np.testing.assert_array_equal(packer.pack(back), packed)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_groups_with_different_scales(data: st.DataObject) -> None:
    group = data.draw(st.sampled_from([64, 128, 256, 512]))
    trits = data.draw(hnp.arrays(np.int8, (3, 512), elements=st.integers(-1, 1)))
    scales = data.draw(hnp.arrays(np.float16, (3, 512 // group), elements=st.sampled_from([0.5, 1, 3])))
    tensor = GroupedTernary(trits, scales.astype(np.float32))
    for kind in ("q2_0", "tq2_0", "tq1_0", "f16"):
        packer = PACKERS[kind]
        by_block = np.repeat(scales, group // 64, axis=1).reshape(-1, max(1, packer.type.block // 64))
        if np.any(by_block != by_block[:, :1]):
            with pytest.raises(UnsupportedError, match=r"changes every .* use --type") as caught:
                packer.pack(tensor)
            assert kind not in str(caught.value).partition("use --type")[2]
            continue
        packed = packer.pack(tensor)
        np.testing.assert_array_equal(packer.unpack(packed, (3, 512)).dequantize(), tensor.dequantize())
        assert packer.rounding(tensor) == 0


def test_i2_s_has_one_scale_and_names_the_types_that_have_more() -> None:
    rows = GroupedTernary(random_trits(2, 256), np.array([[1.0], [2.0]], np.float32))
    with pytest.raises(UnsupportedError, match=r"every 256 weights.*--type tq2_0 or tq1_0 or q2_0 or f16"):
        PACKERS["i2_s"].pack(rows)
    groups = GroupedTernary(random_trits(1, 128), np.array([[1.0, 2.0]], np.float32))
    with pytest.raises(UnsupportedError, match=r"every 64 weights.*use --type q2_0 or f16$"):
        PACKERS["i2_s"].pack(groups)
    odd = GroupedTernary(random_trits(128, 3), np.arange(1, 129, dtype=np.float32)[:, None])
    with pytest.raises(UnsupportedError, match=r"every 3 weights.*use --type f16$"):
        PACKERS["i2_s"].pack(odd)


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_more_blocks_than_a_chunk(kind: str) -> None:
    block = TYPES[kind].block
    tensor = TernaryTensor(random_trits(2049, block, seed=1), np.float32(1))
    packed = PACKERS[kind].pack(tensor)
    np.testing.assert_array_equal(packed, quantized(tensor.dequantize(), kind))
    assert_same(PACKERS[kind].unpack(packed, tensor.trits.shape), tensor)


def test_more_rows_of_floats_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f16, "CHUNK_WEIGHTS", 500)
    tensor = TernaryTensor(random_trits(11, 192), np.float32(0.5))
    packed = f16.pack(tensor)
    np.testing.assert_array_equal(packed.view("<f2").reshape(11, 192), tensor.dequantize())
    assert_same(f16.unpack(packed, (11, 192)), tensor)


@pytest.mark.parametrize("kind", [*BLOCK_TYPES, "f16"])
@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_scales_that_float16_lacks(kind: str, scale: float) -> None:
    for tensor in (
        TernaryTensor(random_trits(1, 256), np.float32(scale)),
        GroupedTernary(random_trits(2, 256), np.array([[1], [scale]], np.float32)),
    ):
        with pytest.raises(UnsupportedError, match=r"float16.*--type auto"):
            PACKERS[kind].pack(tensor)


def test_the_rounding_error_of_a_scale() -> None:
    tensor = TernaryTensor(random_trits(1, 256), np.float32(1 + 2**-11 + 2**-20))
    assert PACKERS["i2_s"].rounding(tensor) == 0
    for kind in (*BLOCK_TYPES, "f16"):
        assert PACKERS[kind].rounding(tensor) == pytest.approx(2**-11, rel=0.01)
        assert PACKERS[kind].rounding(TernaryTensor(tensor.trits, np.float32(0.75))) == 0


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_rows_shorter_than_a_block(kind: str) -> None:
    expected = rf"rows of 96 are not a multiple.*{kind} needs; use --type i2_s"
    with pytest.raises(UnsupportedError, match=expected):
        PACKERS[kind].pack(TernaryTensor(np.zeros((4, 96), dtype=np.int8), np.float32(1)))


@pytest.mark.parametrize("kind", BLOCK_TYPES)
@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_bad_scales_are_rejected_when_read(kind: str, scale: float) -> None:
    packed = PACKERS[kind].pack(TernaryTensor(random_trits(1, 512), np.float32(1)))
    at = 0 if kind == "q2_0" else -2
    packed.reshape(-1, TYPES[kind].block_bytes)[1, at or None : 2 if at == 0 else None].view("<f2")[:] = scale
    with pytest.raises(GGUFError, match=rf"block 1 of {kind} has scale"):
        PACKERS[kind].unpack(packed, (1, 512))


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_trits_of_a_block_with_scale_0_are_zeros(kind: str) -> None:
    packed = PACKERS[kind].pack(TernaryTensor(np.ones((1, 512), np.int8), np.float32(1)))
    at = slice(0, 2) if kind == "q2_0" else slice(-2, None)
    packed.reshape(-1, TYPES[kind].block_bytes)[0, at] = 0
    found = PACKERS[kind].unpack(packed, (1, 512))
    np.testing.assert_array_equal(found.trits, found.dequantize())
    np.testing.assert_array_equal(found.dequantize(), dequantized(packed, (1, 512), kind))


@pytest.mark.parametrize("module", [tq2_0, q2_0])
def test_a_code_of_three_is_not_ternary(module: object) -> None:
    kind = module.__name__.rpartition(".")[2]  # type: ignore[attr-defined]
    packed = PACKERS[kind].pack(TernaryTensor(random_trits(1, 256), np.float32(1)))
    packed[9] |= 0b00001100
    with pytest.raises(UnsupportedError, match="code of 3"):
        PACKERS[kind].unpack(packed, (1, 256))


@pytest.mark.parametrize(
    ("values", "message"),
    [([1, -1, 0, 2] * 64, "one group of weights contains both 1 and 2"), ([1, np.nan, 0, 1] * 64, "NaN|nan")],
)
def test_floats_that_are_not_ternary(values: list[float], message: str) -> None:
    data = np.array([values], dtype="<f2").view(np.uint8).reshape(-1)
    with pytest.raises(BitexportError, match=message):
        f16.unpack(data, (1, 256))


@pytest.mark.parametrize("kind", ["f32", "bf16", "f16"])
def test_float_types_that_contain_ternary_values(kind: str) -> None:
    tensor = TernaryTensor(random_trits(4, 100), np.float32(0.5))
    values = tensor.dequantize()
    data = {
        "f32": values,
        "f16": values.astype(np.float16),
        "bf16": (values.view(np.uint32) >> 16).astype(np.uint16),
    }[kind]
    assert_same(f16.unpack(data.view(np.uint8).reshape(-1), (4, 100), TYPES[kind]), tensor)
