"""The GGUF types that ``convert`` stores ternary tensors in. Adding one: a file here, a line in the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from bitexport.gguf.packers import f16, i2_s, q2_0, q4_0, tq1_0, tq2_0
from bitexport.gguf.types import F16, I2_S, Q2_0, Q4_0, TQ1_0, TQ2_0, TensorType
from bitexport.ternary import AnyTernary, TernaryTensor


@dataclass(frozen=True, slots=True)
class Packer:
    """One type, both ways.

    Attributes:
        type: the tensor type.
        pack: trits and scales to the tensor's bytes, uint8, flat.
        unpack: such bytes and the shape ``[out, in]`` back to trits and scales.
        scale_type: what a scale is stored as; it is rounded to that.
        scale_text: what becomes of a scale, for the table of supported types.
        runs_in: what runs the type, for the same.
    """

    type: TensorType
    pack: Callable[[AnyTernary], npt.NDArray[np.uint8]]
    unpack: Callable[[npt.NDArray[np.uint8], tuple[int, int]], AnyTernary]
    scale_type: npt.DTypeLike
    scale_text: str
    runs_in: str

    def rounding(self, tensor: AnyTernary) -> float:
        """How far the written scales are from the tensor's, at most, as a fraction."""
        scales = (
            np.atleast_1d(tensor.scale) if isinstance(tensor, TernaryTensor) else np.unique(tensor.scales)
        )
        exact = scales[scales > 0].astype(np.float64)
        written = exact.astype(self.scale_type).astype(np.float64)
        return float(np.max(np.abs(written / exact - 1), initial=0))


OURS = "our libllama; other I2_S runtimes, where rows are a multiple of 128"
UPSTREAM = "ours, and any recent llama.cpp that has the architecture"
HALF = "float16, one a block: the report says by how much it was rounded"

#: by the name that ``--type`` takes, the default first.
PACKERS: Mapping[str, Packer] = MappingProxyType(
    {
        packer.type.name: packer
        for packer in (
            Packer(I2_S, i2_s.pack, i2_s.unpack, np.float32, "float32, exact; one a tensor", OURS),
            Packer(TQ2_0, tq2_0.pack, tq2_0.unpack, np.float16, HALF, UPSTREAM),
            Packer(TQ1_0, tq1_0.pack, tq1_0.unpack, np.float16, HALF, UPSTREAM),
            Packer(Q2_0, q2_0.pack, q2_0.unpack, np.float16, HALF, UPSTREAM),
            Packer(F16, f16.pack, f16.unpack, np.float16, "in the values, rounded to float16", UPSTREAM),
        )
    }
)

#: the same and Q4_0, which ``--type`` does not offer: bench's twins are written in it.
ALL_PACKERS: Mapping[str, Packer] = MappingProxyType(
    {**PACKERS, Q4_0.name: Packer(Q4_0, q4_0.pack, q4_0.unpack, np.float16, HALF, UPSTREAM)}
)
