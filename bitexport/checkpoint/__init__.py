"""Reads a Hugging Face checkpoint folder: configuration, shards, tensors, and the packing of the trits."""

from __future__ import annotations

from bitexport.checkpoint.reader import Checkpoint, open_checkpoint
from bitexport.checkpoint.safetensors import TensorInfo

__all__ = ["Checkpoint", "TensorInfo", "open_checkpoint"]
