"""Reads vocabularies, recognises pre-tokenizers, and compares tokenizers between the two sides."""

from __future__ import annotations
