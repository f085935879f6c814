"""The PyTorch side of parity: a checkpoint as transformers itself runs it."""

from __future__ import annotations

from bitexport.reference.model import Reference
from bitexport.reference.opening import load_reference

__all__ = ["Reference", "load_reference"]
