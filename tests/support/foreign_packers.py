"""Writes tensors as other projects' tools do, one row or block after another, independently of our readers.

Each function takes trits, int8 ``[rows, columns]`` (``[experts, rows, columns]`` for I2_S with row scales),
and scales, float32 ``[rows, groups]``, and returns the tensor's bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np

Pack = Callable[[np.ndarray, np.ndarray], bytes]

#: STQ1_0's patterns of four lanes of two bits, lowest first, where 0 is -1; by sign (bit 4) and code. From
#: pull request 22836 of ggml-org/llama.cpp.
STQ1_0_PATTERNS = bytes.fromhex("a9892909a68626069a921a126a624a42012181a1042484a41018909840486068")


def base_3(trits: list[int]) -> int:
    """The byte of up to five trits, the first of which is the most significant digit, as in TQ1_0."""
    number = 0
    for trit in (trits + [-1] * 5)[:5]:
        number = 3 * number + trit + 1
    return (256 * number + 242) // 243


def iq1_bn(trits: np.ndarray, scales: np.ndarray) -> bytes:
    data = b""
    for row, scale in zip(trits.tolist(), scales[:, 0], strict=True):
        data += struct.pack("<e", scale)
        for start in range(0, len(row), 64):
            block = row[start : start + 64]
            for part in range(0, 64, 16):
                for five in range(part, part + 15, 5):
                    data += bytes([base_3(block[five : five + 5][::-1])])
            last = sum(3**place * (block[15 + 16 * place] + 1) for place in range(4))
            data += bytes([(256 * last + 242) // 243])
    return data


def _iq2_bn_row(row: list[int]) -> bytes:
    data = b""
    for start in range(0, len(row), 64):
        for j in range(16):
            data += bytes([sum((row[start + j + 16 * k] + 1) << 2 * k for k in range(4))])
    return data


def iq2_bn(trits: np.ndarray, scales: np.ndarray) -> bytes:
    rows = zip(trits.tolist(), scales[:, 0], strict=True)
    return b"".join(struct.pack("<f", scale) + _iq2_bn_row(row) for row, scale in rows)


def iq2_bn_r4(trits: np.ndarray, scales: np.ndarray) -> bytes:
    data = b""
    for first in range(0, len(trits), 4):
        data += struct.pack("<4f", *scales[first : first + 4, 0])
        four = trits[first : first + 4].tolist()
        for start in range(0, len(four[0]), 64):
            for part in range(0, 64, 16):
                for row in four:
                    for i in range(start + part, start + part + 4):
                        data += bytes([sum((row[i + 4 * k] + 1) << 2 * k for k in range(4))])
    return data


def pq2_0(trits: np.ndarray, scales: np.ndarray) -> bytes:
    data = b""
    for block, scale in zip(trits.reshape(-1, 128).tolist(), scales.reshape(-1), strict=True):
        data += struct.pack("<e", scale)
        data += bytes(sum((block[4 * j + k] + 1) << 2 * k for k in range(4)) for j in range(32))
    return data


def ptq1_0(trits: np.ndarray, scales: np.ndarray) -> bytes:
    data = b""
    for block, scale in zip(trits.reshape(-1, 128).tolist(), scales.reshape(-1), strict=True):
        data += bytes(base_3([block[j + 16 * n] for n in range(5)]) for j in range(16))
        data += bytes(base_3([block[80 + j + 8 * n] for n in range(5)]) for j in range(8))
        data += bytes(base_3([block[120 + j + 2 * n] for n in range(4)]) for j in range(2))
        data += struct.pack("<e", scale)
    return data


def stq1_0(trits: np.ndarray, scales: np.ndarray) -> bytes:
    data = b""
    for block, scale in zip(trits.reshape(-1, 256).tolist(), scales.reshape(-1), strict=True):
        codes, signs = bytearray(32), bytearray(8)
        for group in range(64):
            first = group // 16 * 64 + group % 16
            pattern = sum((block[first + 16 * p] + 1) << 2 * p for p in range(4))
            index = STQ1_0_PATTERNS.index(pattern)
            codes[group // 2] |= (index & 15) << 4 * (group % 2)
            signs[group // 8] |= (index >> 4) << group % 8
        data += bytes(codes) + bytes(signs) + struct.pack("<e", scale)
    return data


def i2_s_row_scale(trits: np.ndarray, scales: np.ndarray) -> bytes:
    experts = trits if trits.ndim == 3 else trits[None]
    data = b""
    for expert, own in zip(experts, scales.reshape(len(experts), -1), strict=True):
        for block in expert.reshape(-1, 128).tolist():
            data += bytes(sum((block[j + 32 * k] + 1) << 6 - 2 * k for k in range(4)) for j in range(32))
        data += own.astype("<f4").tobytes()
        data += bytes(-len(data) % 32)
    return data


PACKS: dict[str, Pack] = {
    "iq1_bn": iq1_bn,
    "iq2_bn": iq2_bn,
    "iq2_bn_r4": iq2_bn_r4,
    "pq2_0": pq2_0,
    "ptq1_0": ptq1_0,
    "stq1_0": stq1_0,
    "i2_s_row_scale": i2_s_row_scale,
}


def example(name: str, rows: int, columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Trits, one zero in every four for STQ1_0, and scales as the type has them, exact in float16."""
    rng = np.random.default_rng(seed)
    group = {"pq2_0": 128, "ptq1_0": 128, "stq1_0": 256}.get(name, columns)
    scales = rng.uniform(0.01, 2, (rows, columns // group)).astype(np.float16).astype(np.float32)
    trits = rng.integers(-1, 2, (rows, columns), dtype=np.int8)
    if name == "stq1_0":
        lanes = rng.choice(np.array([-1, 1], dtype=np.int8), (rows, columns // 64, 4, 16))
        zero = rng.integers(0, 4, (rows, columns // 64, 1, 16))
        np.put_along_axis(lanes, zero, np.int8(0), axis=2)
        trits = lanes.reshape(rows, columns)
    return trits, scales
