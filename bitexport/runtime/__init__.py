"""The C++ side: finds our libllama, drives it through llama-cpp-python, yields logits."""

from __future__ import annotations
