"""Text as records: where it comes from, how it is split, and what a model sees of it.

Training and ``bitexport eval`` read the same sources through the same split and the same templates, so that
what one holds out the other judges by.
"""

from __future__ import annotations

from bitexport.text.sources import Chat, Document, Pair, Record, read_source, read_sources, texts_of
from bitexport.text.split import Split, side_of, split
from bitexport.text.templates import Template, encode_record, render, special_tokens_of

__all__ = [
    "Chat",
    "Document",
    "Pair",
    "Record",
    "Split",
    "Template",
    "encode_record",
    "read_source",
    "read_sources",
    "render",
    "side_of",
    "special_tokens_of",
    "split",
    "texts_of",
]
