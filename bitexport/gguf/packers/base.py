"""The interface of a packer: one GGUF type in which ternary tensors are stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitexport.gguf.types import TensorType
from bitexport.ternary import AnyTernary, TernaryTensor

#: :attr:`Packer.runs_in` of the types that llama.cpp has as well.
UPSTREAM = "our libllama; any recent llama.cpp that has the architecture"


@dataclass(frozen=True, slots=True)
class Packer:
    """One GGUF type for ternary tensors, in both directions.

    Attributes:
        type: the tensor type.
        pack: trits and scales to the tensor's bytes, uint8, flat.
        unpack: such bytes and the shape ``[out, in]`` back to trits and scales.
        scale_type: the dtype that a scale is rounded to and stored as.
        scale_text: how scales are stored, for the table of supported types.
        runs_in: which runtimes run the type, for the same table.
    """

    type: TensorType
    pack: Callable[[AnyTernary], npt.NDArray[np.uint8]]
    unpack: Callable[[npt.NDArray[np.uint8], tuple[int, int]], AnyTernary]
    scale_type: npt.DTypeLike
    scale_text: str
    runs_in: str

    def rounding(self, tensor: AnyTernary) -> float:
        """The largest relative difference between a scale of the tensor and the scale as written."""
        scales = (
            np.atleast_1d(tensor.scale) if isinstance(tensor, TernaryTensor) else np.unique(tensor.scales)
        )
        exact = scales[scales > 0].astype(np.float64)
        written = exact.astype(self.scale_type).astype(np.float64)
        return float(np.max(np.abs(written / exact - 1), initial=0))
