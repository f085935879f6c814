"""Measures of a model's output: agreement of two sets of logits, and the likelihood of a text."""

from __future__ import annotations
