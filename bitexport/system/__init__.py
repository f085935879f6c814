"""The machine and its files: memory and CPU limits, atomic writes, the native libraries' folder, pictures."""

from __future__ import annotations
