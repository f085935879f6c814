"""Figures on what a model puts out: how far two sets of logits agree, and how likely a text is."""

from __future__ import annotations
