"""Text embeddings: one vector per text, from a GGUF file on our libllama."""

from __future__ import annotations

from bitexport.embed.driver import embed
from bitexport.embed.report import Embedding, EmbedReport

__all__ = ["EmbedReport", "Embedding", "embed"]
