"""Sharing a GGUF file: a model card of what was measured, and the upload to the hub."""

from __future__ import annotations

from bitexport.sharing.card import BLANK, Card, card
from bitexport.sharing.push import PushReport, push

__all__ = ["BLANK", "Card", "PushReport", "card", "push"]
