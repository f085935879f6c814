"""Runs linear layers that are not quantized as ggml computes them from a float16 matrix."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from bitexport.gguf.names import OUTPUT_HEAD
from bitexport.gguf.reader import read_gguf
from bitexport.reference.embeddings import rounded_for_head


@contextmanager
def rounded_float_layers(modules: Mapping[str, nn.Module], path: str | os.PathLike[str]) -> Iterator[None]:
    """Within the block, layers stored as float16 in the file multiply float16 weights and activations.

    These are the layers that ``modules_to_not_convert`` excludes from quantization. Their weights are the
    reference's, rounded, so that a mistake in the file's weights shows. The head is not included.

    Args:
        modules: the reference's modules, by the GGUF name of their weight.
        path: the GGUF file.

    Raises:
        GGUFError: the file is damaged.
    """
    halves = {tensor.name for tensor in read_gguf(os.fspath(path)).tensors if tensor.type.name == "f16"}
    chosen = [
        module
        for name, module in modules.items()
        if type(module) is nn.Linear and name in halves and name != OUTPUT_HEAD
    ]
    kept = [layer.weight.data for layer in chosen]
    handles = [layer.register_forward_pre_hook(_round_inputs) for layer in chosen]
    try:
        for layer in chosen:
            layer.weight.data = layer.weight.data.half().float()
        yield
    finally:
        for layer, weight in zip(chosen, kept, strict=True):
            layer.weight.data = weight
        for handle in handles:
            handle.remove()


def _round_inputs(_layer: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    return (rounded_for_head(inputs[0], "f16"),)
