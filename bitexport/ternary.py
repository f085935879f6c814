"""The one value between reading and writing: a ternary weight matrix and its scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class TernaryTensor:
    """A weight matrix whose every value is ``trit * scale``.

    Every packing (``bitexport.checkpoint.packings``) produces it and every ternary GGUF type
    (``bitexport.gguf``) consumes it, so that the two never need to know of each other.

    Attributes:
        trits: int8, shape ``[out, in]``, values in {-1, 0, +1}, row-major.
        scale: float32, positive and finite; one for the whole tensor.
        stored_scale: where the weights were ternary already when they were quantized, with another scale,
            that scale.
    """

    trits: npt.NDArray[np.int8]
    scale: np.float32
    stored_scale: np.float32 | None = None

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The matrix as float32, shape ``[out, in]``."""
        return self.trits.astype(np.float32) * self.scale
