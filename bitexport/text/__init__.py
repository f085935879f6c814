"""Text as records: where it comes from, how it is split, and how it is presented to a model.

Training and ``bitexport eval`` read the same sources with the same split and the same templates, so that
``eval`` measures on exactly what training held out.
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
