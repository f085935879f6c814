"""Writing and reading GGUF: tensor types, packers, metadata and the tokenizer."""

from __future__ import annotations
