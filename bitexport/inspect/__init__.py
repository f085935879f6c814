"""``bitexport inspect``: what a checkpoint or a GGUF file holds."""

from __future__ import annotations

from bitexport.inspect.driver import inspect
from bitexport.inspect.report import InspectReport, TensorRow

__all__ = ["InspectReport", "TensorRow", "inspect"]
