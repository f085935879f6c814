"""``bitexport parity``: does C++ compute what PyTorch computes? Compares logits, steps, tokens and text."""

from __future__ import annotations

from bitexport.parity.driver import parity

__all__ = ["parity"]
