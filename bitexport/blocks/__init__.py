"""Decoding in blocks: which tokens to settle, and the loop that both PyTorch and C++ are run by."""

from bitexport.blocks.choice import TokenChoice
from bitexport.blocks.decoding import BlockDecoding, Evaluator
from bitexport.blocks.rules import BlockRule

__all__ = ["BlockDecoding", "BlockRule", "Evaluator", "TokenChoice"]
