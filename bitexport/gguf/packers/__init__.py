"""The packers: the GGUF types that bitexport stores ternary tensors in, and reads them from.

The mirror of :mod:`bitexport.checkpoint.packings`, on the other side of :mod:`bitexport.ternary`.
Adding a packer: one new file here, one line in :data:`PACKERS`. Types of other projects are only read; adding
one: a line in :mod:`bitexport.gguf.foreign_types`, a function here, a line in :data:`FOREIGN_UNPACKERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from bitexport.gguf import foreign_types as foreign
from bitexport.gguf.packers import (
    f16,
    i2_s,
    i2_s_row_scale,
    iq_bn,
    prism,
    q2_0,
    q4_0,
    stq1_0,
    tq1_0,
    tq2_0,
)
from bitexport.gguf.packers.base import Packer
from bitexport.ternary import AnyTernary

__all__ = ["ALL_PACKERS", "FOREIGN_UNPACKERS", "PACKERS", "Packer"]

#: Packers by the name that ``--type`` accepts, the default first.
PACKERS: Mapping[str, Packer] = MappingProxyType(
    {
        packer.type.name: packer
        for packer in (i2_s.PACKER, tq2_0.PACKER, tq1_0.PACKER, q2_0.PACKER, f16.PACKER)
    }
)

#: The same and two that ``--type`` does not offer: Q4_0, in which bench's twins are written, and F32, which
#: ``--type auto`` chooses for scales that float16 cannot hold.
ALL_PACKERS: Mapping[str, Packer] = MappingProxyType(
    {**PACKERS, q4_0.PACKER.type.name: q4_0.PACKER, f16.F32_PACKER.type.name: f16.F32_PACKER}
)

#: Bytes of a tensor and its shape (outermost first) to trits and scales, the matrices stacked.
Unpacker: TypeAlias = Callable[[npt.NDArray[np.uint8], Sequence[int]], AnyTernary]

#: The types of other projects that are read, by name.
FOREIGN_UNPACKERS: Mapping[str, Unpacker] = MappingProxyType(
    {
        foreign.IQ1_BN.name: iq_bn.unpack_iq1_bn,
        foreign.IQ2_BN.name: iq_bn.unpack_iq2_bn,
        foreign.IQ2_BN_R4.name: iq_bn.unpack_iq2_bn_r4,
        foreign.PQ2_0.name: prism.unpack_pq2_0,
        foreign.PTQ1_0.name: prism.unpack_ptq1_0,
        foreign.STQ1_0.name: stq1_0.unpack,
        foreign.I2_S_ROW_SCALE.name: i2_s_row_scale.unpack,
    }
)
