"""Signs in the tensors themselves, looked for while they are in memory anyway.

A ternary tensor is summed and or-ed along its rows and its columns, eight trits at a time, which takes a
thirtieth of the time that packing it takes. The sums are also what tells whether two tensors are identical:
that two different ones agree in the sums of every row and every eight columns, and in their scale, does not
happen by chance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitexport.errors import CheckpointError
from bitexport.health.signs import MIN_WEIGHTS, SCALE_FLOOR, ZERO_FRACTION, Finding, Sign, fold
from bitexport.ternary import TernaryTensor

#: dead rows are no sign where chance alone gives as many: the expected number of them.
MAX_BY_CHANCE = 0.01


@dataclass(slots=True)
class _Floats:
    """What is known of a float tensor that comes in pieces."""

    weights: int = 0
    zero: bool = True


class Health:
    """Collects the signs of one checkpoint or file; give it every tensor once.

    Several threads may do so: the findings do not depend on the order.
    """

    def __init__(self) -> None:
        self._signs: list[Sign] = []
        self._prints: dict[str, bytes] = {}
        self._floats: dict[str, _Floats] = {}

    def ternary(self, name: str, tensor: TernaryTensor) -> None:
        """Look at a ternary tensor."""
        rows, columns = tensor.trits.shape
        size = tensor.trits.size
        zeros = size - int(np.count_nonzero(tensor.trits))
        if zeros == size:
            floor = f", scale {float(tensor.scale):.3g}" if tensor.scale <= SCALE_FLOOR else ""
            self.add("all-zero", name, f"all {size:,} weights are zero{floor}")
            return
        fraction = zeros / size
        if size >= MIN_WEIGHTS and not ZERO_FRACTION[0] <= fraction <= ZERO_FRACTION[1]:
            self.add("zero-fraction", name, f"{fraction:.3f} of the weights are zero")
        if tensor.scale <= SCALE_FLOOR:
            self.add("scale-at-floor", name, f"scale {float(tensor.scale):.3g}")
        words = _words(tensor.trits)
        for sign, axis, count, length in (
            ("dead-rows", 1, rows, columns),
            ("dead-columns", 0, columns, rows),
        ):
            live = np.bitwise_or.reduce(words, axis=axis)
            alive = np.count_nonzero(live if axis == 1 else live.view(np.uint8))
            if alive < count and count * fraction**length < MAX_BY_CHANCE:
                self.add(sign, name, f"{count - alive} of {count:,} {sign[5:]} are all zeros")
        self._prints[name] = _fingerprint(words, tensor.scale)

    def floats(self, name: str, values: npt.NDArray[np.float32]) -> None:
        """Look at a piece of a tensor that is not ternary. Its values are finite: reading checked that."""
        seen = self._floats.setdefault(name, _Floats())
        seen.weights += values.size
        # ordinary weights settle it with their first number
        if seen.zero and values.size and (values.flat[0] or values.any()):
            seen.zero = False

    def add(self, sign: str, place: str, value: str) -> None:
        """A sign that was found elsewhere. ``place`` is a tensor or a file, without quotes."""
        self._signs.append(Sign(sign, f"'{place}'", value))

    def failed(self, name: str, error: CheckpointError) -> None:
        """A tensor that could not be read; the error says what sign that is."""
        self.add(error.sign, name, str(error).removeprefix(f"tensor '{name}' "))

    def findings(self) -> list[Finding]:
        """Everything so far, folded."""
        zero = [
            Sign("all-zero", f"'{name}'", f"all {seen.weights:,} values are zero")
            for name, seen in self._floats.items()
            if seen.zero and seen.weights and not name.endswith(".bias")  # where training begins with it
        ]
        return fold([*self._signs, *zero, *_identical(self._prints)])


def _words(trits: npt.NDArray[np.int8]) -> npt.NDArray[np.unsignedinteger]:
    """The trits of a row taken together, as many as fit."""
    columns = trits.shape[1]
    kind = np.uint64 if columns % 8 == 0 else np.uint32 if columns % 4 == 0 else np.uint8
    return np.ascontiguousarray(trits).view(kind)


def _fingerprint(words: npt.NDArray[np.unsignedinteger], scale: np.float32) -> bytes:
    digest = hashlib.blake2b(repr(words.shape).encode() + scale.tobytes(), digest_size=16)
    for axis in (0, 1):
        # the sums wrap around
        digest.update(np.add.reduce(words, axis=axis, dtype=np.uint64).tobytes())
    return digest.digest()


def _identical(prints: Mapping[str, bytes]) -> list[Sign]:
    groups: dict[bytes, list[str]] = {}
    for name in sorted(prints):
        groups.setdefault(prints[name], []).append(name)
    return [
        Sign("identical-tensors", f"'{name}'", f"the same trits and scale as '{names[0]}'")
        for names in groups.values()
        for name in names[1:]
    ]
