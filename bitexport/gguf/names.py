"""Names of the GGUF tensors that code treats by name. Families map all the others."""

from __future__ import annotations

TOKEN_EMBEDDING = "token_embd.weight"
OUTPUT_HEAD = "output.weight"
