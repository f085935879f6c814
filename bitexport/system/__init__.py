"""The machine and its files: limits, atomic writes, where the native libraries are, pictures."""

from __future__ import annotations
