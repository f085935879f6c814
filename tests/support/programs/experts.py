"""Compare products with experts on our buffer type with NumPy, to the bit; run as a separate process.

Usage: experts.py THREADS...      prints the tier and the layout, or fails
       experts.py FAULT           one of FAULTS, on which ggml has to abort

A process selects its kernel tier only once (BITEXPORT_TIER), so each tier needs a separate process.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from bitexport.gguf.packers import PACKERS
from bitexport.gguf.types import I2_S, Q2_0, TQ1_0, TQ2_0
from bitexport.runtime.ggml import cpu_tier, weight_layout
from bitexport.runtime.observe import record_activations
from bitexport.ternary import GroupedTernary, TernaryTensor
from tests.support.ggml_graph import Product

SCALE = np.float32(0.37)

#: [experts, rows, columns]: one panel, a panel that is cut, several, columns that are not whole chunks
SHAPES = [(4, 32, 128), (8, 40, 256), (5, 200, 192), (1, 64, 128), (16, 32, 64)]


def quantized(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 activations (as int32) and their scales, as native/kernels/ternary/ternary.h defines them."""
    scale = np.float32(127) / np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(1e-5))
    return np.clip(np.rint(x * scale), -128, 127).astype(np.int32), scale


def expected(trits: np.ndarray, x: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """float32 [tokens, slots, rows], from the definition."""
    tokens, slots = (np.arange(count) for count in ids.shape)
    rows = slots % x.shape[1]
    q, scale = quantized(x)
    # [tokens, rows of x, experts, rows]; float64 holds these integers, and NumPy multiplies it quickly
    sums = np.tensordot(q.astype(np.float64), trits.astype(np.float64), axes=(2, 2)).astype(np.int32)
    chosen = sums[tokens[:, None], rows, ids]
    return chosen.astype(np.float32) * (SCALE / scale[:, rows])


def grouped_expected(
    trits: np.ndarray, scales: np.ndarray, x: np.ndarray, ids: np.ndarray, group: int
) -> np.ndarray:
    """The same for a scale in every block: float additions in the order of the groups of activations.

    As native/kernels/ternary/grouped.h defines it.

    Args:
        scales: float32 [experts, rows, blocks].
        group: how many activations share a step: 32, whose steps are rounded to float16, or 256.
    """
    parts = x.reshape(*x.shape[:2], -1, group)
    largest = np.abs(parts).max(axis=-1, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    q = np.rint(parts * inverse)
    step = (largest / np.float32(127)).astype(np.float16).astype(np.float32)
    if group == 256:
        step = np.divide(np.float32(1), inverse, out=np.zeros_like(inverse), where=inverse > 0)
    tokens, slots = (np.arange(count) for count in ids.shape)
    rows = slots % x.shape[1]
    y = np.zeros((*ids.shape, trits.shape[1]), dtype=np.float32)
    grouped = trits.reshape(*trits.shape[:2], -1, group).astype(np.float64)
    for index in range(grouped.shape[2]):
        sums = np.tensordot(q[:, :, index].astype(np.float64), grouped[:, :, index], axes=(2, 2))
        chosen = sums[tokens[:, None], rows, ids].astype(np.float32)
        scale = scales[:, :, index * group * scales.shape[2] // trits.shape[2]]
        y += chosen * (scale[ids] * step[:, rows, index])
    return y


def routings(experts: int, slots: int, tokens: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """int32 [tokens, slots]: part of a wider array, as top-k gives it; all tokens to one expert; repeated."""
    order = np.argsort(random.random((tokens, experts)), axis=1).astype(np.int32)
    yield order[:, :slots]
    yield np.full((tokens, slots), experts - 1, dtype=np.int32)
    yield random.integers(0, experts, (tokens, slots), dtype=np.int32)


def product(shape: tuple[int, int, int], random: np.random.Generator) -> tuple[np.ndarray, Product]:
    """Random trits, int8 ``shape``, and the product with them."""
    trits = random.integers(-1, 2, shape, dtype=np.int8)
    data = PACKERS[I2_S.name].pack(TernaryTensor(trits.reshape(-1, shape[-1]), SCALE))
    return trits, Product(I2_S, data, shape)


def compare(threads: list[int]) -> None:
    random = np.random.default_rng(0)
    for shape in SHAPES:
        trits, ours = product(shape, random)
        experts, _, columns = shape
        for tokens in (1, 2, 70):
            for slots in {1, min(4, experts)}:
                for different in {1, slots} | ({2} if slots == 4 else set()):
                    x = random.standard_normal((tokens, different, columns), dtype=np.float32)
                    x[-1, -1] = 0
                    x[0, 0, 0] = 100
                    for ids in routings(experts, slots, tokens, random):
                        y = expected(trits, x, ids)
                        for count in threads:
                            found = ours.mul_mat_id(x, ids, count)
                            where = f"{shape}, {tokens} tokens, {slots} slots, {count} threads"
                            np.testing.assert_array_equal(found, y, err_msg=where)
        ours.close()


def compare_grouped(threads: int) -> None:
    """The types with a scale in every block, and ggml's own kernels, up to the order of additions."""
    random = np.random.default_rng(4)
    for kind, group in ((Q2_0, 32), (TQ1_0, 256), (TQ2_0, 256)):
        for shape in ((4, 40, 512), (6, 96, 256)):
            trits = random.integers(-1, 2, shape, dtype=np.int8)
            blocks = random.uniform(0.01, 1, (shape[0] * shape[1], shape[2] // kind.block)).astype(np.float16)
            weights = GroupedTernary(trits.reshape(-1, shape[2]), blocks.astype(np.float32))
            data = PACKERS[kind.name].pack(weights)
            ours, stock = Product(kind, data, shape), Product(kind, data, shape, ours=False)
            scales = weights.scales.reshape(*shape[:2], -1)
            for tokens, slots, different in ((1, 2, 1), (1, 4, 4), (70, 1, 1), (70, 4, 1), (70, 4, 4)):
                x = random.standard_normal((tokens, different, shape[2]), dtype=np.float32)
                for ids in routings(shape[0], slots, tokens, random):
                    y = grouped_expected(trits, scales, x, ids, group)
                    found = ours.mul_mat_id(x, ids, threads)
                    np.testing.assert_array_equal(found, y, err_msg=f"{kind.name} {shape} {tokens} {slots}")
                    own = stock.mul_mat_id(x, ids, threads)
                    np.testing.assert_allclose(found, own, atol=1e-4 * np.abs(own).max(), rtol=0)
            with record_activations() as recorded:
                ours.mul_mat_id(x, np.tile(np.arange(4, dtype=np.int32), (70, 1)), threads)
            for expert in range(4):
                inputs = recorded[f"blk.0.ffn_up_exps.weight#{expert}"]
                assert inputs.group == group
                found = inputs.q / np.repeat(inputs.scales, group, axis=1)
                np.testing.assert_allclose(found, x[:, expert], atol=0.03)
            ours.close()
            stock.close()


def compare_observed() -> None:
    """The observer gets each expert's rows, in the order of tokens and slots."""
    random = np.random.default_rng(1)
    _, ours = product((4, 32, 128), random)
    for tokens, different in ((1, 1), (1, 2), (40, 1), (40, 2)):
        x = random.standard_normal((tokens, different, 128), dtype=np.float32)
        ids = random.integers(0, 3, (tokens, 2), dtype=np.int32)  # none for expert 3
        with record_activations() as recorded:
            ours.mul_mat_id(x, ids, 2)
        q, scale = quantized(x)
        rows: dict[str, Any] = {}
        for token, slot in np.ndindex(*ids.shape):
            name = f"blk.0.ffn_up_exps.weight#{ids[token, slot]}"
            rows.setdefault(name, []).append((q[token, slot % different], scale[token, slot % different]))
        assert recorded.keys() == rows.keys()
        for name, found in recorded.items():
            np.testing.assert_array_equal(found.q, np.stack([values for values, _ in rows[name]]))
            np.testing.assert_array_equal(found.scales, np.stack([each for _, each in rows[name]]))


def compare_bias() -> None:
    """ggml's own ADD_ID follows our product."""
    random = np.random.default_rng(2)
    trits, ours = product((4, 32, 128), random)
    x = random.standard_normal((3, 1, 128), dtype=np.float32)
    ids = random.integers(0, 4, (3, 2), dtype=np.int32)
    bias = random.standard_normal((4, 32), dtype=np.float32)
    found = ours.mul_mat_id(x, ids, 2, bias)
    np.testing.assert_array_equal(found, expected(trits, x, ids) + bias[ids])


def compute(fault: str) -> None:
    """Do what has to abort, and say so if it did not."""
    random = np.random.default_rng(3)
    _, ours = product((4, 32, 128), random)
    if fault.startswith("grouped-"):
        data = PACKERS["q2_0"].pack(TernaryTensor(np.ones((4 * 32, 128), dtype=np.int8), SCALE))
        ours = Product(Q2_0, data, (4, 32, 128))
    x = random.standard_normal((2, 1, 128), dtype=np.float32)
    if fault == "too-large":
        ours.mul_mat_id(x, np.array([[0, 1], [4, 2]], dtype=np.int32), 1)
    elif fault == "negative":
        ours.mul_mat_id(x, np.array([[0, 1], [-1, 2]], dtype=np.int32), 1)
    elif fault.endswith("view"):
        ours.of_view(x, np.array([[0, 1], [0, 1]], dtype=np.int32))
    elif fault.endswith("mul-mat"):
        ours.mul_mat(x)
    print("not refused")


FAULTS = ("too-large", "negative", "view", "mul-mat", "grouped-view", "grouped-mul-mat")


def main() -> None:
    if sys.argv[1] in FAULTS:
        compute(sys.argv[1])
        return
    compare([int(count) for count in sys.argv[1:]])
    compare_grouped(int(sys.argv[-1]))
    compare_observed()
    compare_bias()
    print(cpu_tier(), weight_layout())


if __name__ == "__main__":
    main()
