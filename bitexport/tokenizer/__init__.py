"""Vocabularies and pre-tokenizers: read, recognised, and compared between the two sides."""

from __future__ import annotations
