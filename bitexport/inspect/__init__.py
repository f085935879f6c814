"""``bitexport inspect``: the contents of a checkpoint or a GGUF file."""

from __future__ import annotations

from bitexport.inspect.driver import inspect
from bitexport.inspect.report import InspectReport, TensorRow

__all__ = ["InspectReport", "TensorRow", "inspect"]
