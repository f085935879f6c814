"""Reads and writes GGUF files: tensor types, packers, and checks of files that libllama is to open."""

from __future__ import annotations
