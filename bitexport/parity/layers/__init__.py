"""Where C++ and PyTorch part: every step of every block compared by name."""

from __future__ import annotations
