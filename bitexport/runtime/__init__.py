"""The C++ side: binds our libllama through llama-cpp-python and computes logits and text with it."""

from __future__ import annotations
