"""The packers: the GGUF types that bitexport stores ternary tensors in, and reads them from.

The mirror of :mod:`bitexport.checkpoint.packings`, on the other side of :mod:`bitexport.ternary`.
Adding a packer: one new file here, one line in :data:`PACKERS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from bitexport.gguf.packers import f16, i2_s, q2_0, q4_0, tq1_0, tq2_0
from bitexport.gguf.packers.base import Packer

__all__ = ["ALL_PACKERS", "PACKERS", "Packer"]

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
