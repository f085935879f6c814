"""Signs in the tensors themselves, looked for while they are in memory anyway.

A ternary tensor is summed and or-ed along its rows and its columns, eight trits at a time, which takes a
thirtieth of the time of packing it. The sums also show whether two tensors are identical: different tensors
do not agree by chance in the sums of all rows, of all groups of eight columns, and in the scale.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitexport.errors import BitexportError
from bitexport.health.signs import MIN_WEIGHTS, SCALE_FLOOR, ZERO_FRACTION, Finding, Sign, fold
from bitexport.ternary import AnyTernary, GroupedTernary, TernaryTensor

#: Dead rows or columns count as a sign only if fewer than this many are expected by chance.
MAX_BY_CHANCE = 0.01


@dataclass(slots=True)
class _Floats:
    """What is known so far about a float tensor that arrives in chunks."""

    weights: int = 0
    zero: bool = True


class Health:
    """Collects the signs of one checkpoint or file; pass it every tensor once.

    Several threads may do so: the findings do not depend on the order.
    """

    def __init__(self) -> None:
        self._signs: list[Sign] = []
        self._fingerprints: dict[str, bytes] = {}
        self._floats: dict[str, _Floats] = {}

    def ternary(self, name: str, tensor: AnyTernary) -> None:
        """Check a ternary tensor. One of several scales is at the floor only if all of them are."""
        rows, columns = tensor.trits.shape
        size = tensor.trits.size
        zeros = size - int(np.count_nonzero(tensor.trits))
        scales = np.atleast_1d(tensor.scale if isinstance(tensor, TernaryTensor) else tensor.scales)
        largest = float(scales.max())
        if zeros == size:
            floor = f", scale {largest:.3g}" if 0 < largest <= SCALE_FLOOR else ""
            self.add("all-zero", name, f"all {size:,} weights are zero{floor}")
            return
        fraction = zeros / size
        if size >= MIN_WEIGHTS and not ZERO_FRACTION[0] <= fraction <= ZERO_FRACTION[1]:
            self.add("zero-fraction", name, f"{fraction:.3f} of the weights are zero")
        if largest <= SCALE_FLOOR:
            self.add("scale-at-floor", name, f"scale {largest:.3g}")
        words = _words(tensor.trits)
        for sign, axis, count, length in (
            ("dead-rows", 1, rows, columns),
            ("dead-columns", 0, columns, rows),
        ):
            live = np.bitwise_or.reduce(words, axis=axis)
            alive = np.count_nonzero(live if axis == 1 else live.view(np.uint8))
            if alive < count and count * fraction**length < MAX_BY_CHANCE:
                self.add(sign, name, f"{count - alive} of {count:,} {sign[5:]} are all zeros")
        if isinstance(tensor, GroupedTernary) and tensor.group < columns:
            self._dead_groups(name, tensor, fraction)
        self._fingerprints[name] = _fingerprint(words, scales)

    def _dead_groups(self, name: str, tensor: GroupedTernary, fraction: float) -> None:
        """Look for groups that are all zeros in rows that are not."""
        live = tensor.scales > 0
        dead = int(np.count_nonzero(~live[live.any(axis=1)]))
        if dead and live.size * fraction**tensor.group < MAX_BY_CHANCE:
            self.add(
                "dead-groups",
                name,
                f"{dead:,} of {live.size:,} groups of {tensor.group} columns are all zeros",
            )

    def floats(self, name: str, values: npt.NDArray[np.float32]) -> None:
        """Check a chunk of a tensor that is not ternary. Its values are finite: the reader checks that."""
        seen = self._floats.setdefault(name, _Floats())
        seen.weights += values.size
        # the first number of ordinary weights is enough
        if seen.zero and values.size and (values.flat[0] or values.any()):
            seen.zero = False

    def add(self, sign: str, place: str, value: str) -> None:
        """Add a sign that was found elsewhere. ``place`` is a tensor or a file, without quotes."""
        self._signs.append(Sign(sign, f"'{place}'", value))

    def failed(self, name: str, error: BitexportError) -> None:
        """Add a tensor that could not be read, under the sign that the error names."""
        self.add(error.sign, name, str(error).removeprefix(f"tensor '{name}' "))

    def findings(self) -> list[Finding]:
        """Everything found so far, one finding per sign."""
        zero = [
            Sign("all-zero", f"'{name}'", f"all {seen.weights:,} values are zero")
            for name, seen in self._floats.items()
            if seen.zero and seen.weights and not name.endswith(".bias")  # biases often start at zero
        ]
        return fold([*self._signs, *zero, *_identical(self._fingerprints)])


def _words(trits: npt.NDArray[np.int8]) -> npt.NDArray[np.unsignedinteger]:
    """The trits of each row as words of 8, 4 or 1 trits, the widest that divides the row."""
    columns = trits.shape[1]
    dtype = np.uint64 if columns % 8 == 0 else np.uint32 if columns % 4 == 0 else np.uint8
    return np.ascontiguousarray(trits).view(dtype)


def _fingerprint(words: npt.NDArray[np.unsignedinteger], scales: npt.NDArray[np.float32]) -> bytes:
    digest = hashlib.blake2b(repr(words.shape).encode() + scales.tobytes(), digest_size=16)
    for axis in (0, 1):
        # the sums may wrap around
        digest.update(np.add.reduce(words, axis=axis, dtype=np.uint64).tobytes())
    return digest.digest()


def _identical(fingerprints: Mapping[str, bytes]) -> list[Sign]:
    groups: dict[bytes, list[str]] = {}
    for name in sorted(fingerprints):
        groups.setdefault(fingerprints[name], []).append(name)
    return [
        Sign("identical-tensors", f"'{name}'", f"the same trits and scale as '{names[0]}'")
        for names in groups.values()
        for name in names[1:]
    ]
