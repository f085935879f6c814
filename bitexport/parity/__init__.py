"""``bitexport parity``: does C++ compute what PyTorch computes? Logits, steps, tokens and text, compared."""

from __future__ import annotations

from bitexport.parity.driver import parity

__all__ = ["parity"]
