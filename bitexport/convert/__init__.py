"""``bitexport convert``: a ternary checkpoint, or a GGUF file of a ternary model, becomes a GGUF file."""

from __future__ import annotations

from bitexport.convert.driver import ConvertReport, TypeRow, convert

__all__ = ["ConvertReport", "TypeRow", "convert"]
