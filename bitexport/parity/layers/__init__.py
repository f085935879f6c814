"""Every step of every block compared by name, to find where C++ and PyTorch diverge."""

from __future__ import annotations
