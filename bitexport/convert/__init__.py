"""``bitexport convert``: a ternary checkpoint, or a GGUF file of a ternary model, becomes a GGUF file."""

from __future__ import annotations

from bitexport.convert.driver import convert
from bitexport.convert.report import ConvertReport, TypeRow

__all__ = ["ConvertReport", "TypeRow", "convert"]
