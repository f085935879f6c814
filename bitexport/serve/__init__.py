"""Serves a GGUF file over HTTP with llama.cpp's own llama-server on our libraries."""

from __future__ import annotations

from bitexport.serve.limits import Limits
from bitexport.serve.records import RequestRecord
from bitexport.serve.server import Server, Summary, serve

__all__ = ["Limits", "RequestRecord", "Server", "Summary", "serve"]
