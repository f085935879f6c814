"""Gives the reference another embedding for a while: the one that a converted file holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bitexport.errors import GGUFError

Matrix = npt.NDArray[np.float32]


@contextmanager
def replaced_embeddings(model: Any, embedding: Matrix, head: Matrix | None) -> Iterator[None]:
    """Within the block, ``model`` looks tokens up in ``embedding`` and makes logits with ``head``.

    Args:
        model: a transformers causal language model in float32.
        embedding: float32 ``[vocab, hidden]``.
        head: the same; None where the file has none, so that the embedding serves as the head.

    Raises:
        GGUFError: a shape differs from the model's.
    """
    lookup, output = model.get_input_embeddings(), model.get_output_embeddings()
    kept = lookup.weight.data, output.weight.data
    try:
        lookup.weight.data = _fitting(embedding, kept[0])
        output.weight.data = lookup.weight.data if head is None else _fitting(head, kept[1])
        yield
    finally:
        # One after the other: when they are tied, both are the same parameter.
        lookup.weight.data = kept[0]
        output.weight.data = kept[1]


def _fitting(matrix: Matrix, expected: torch.Tensor) -> torch.Tensor:
    if matrix.shape != tuple(expected.shape):
        raise GGUFError(
            f"the file's embedding has shape {matrix.shape}, the checkpoint's {tuple(expected.shape)}; "
            "is the file made from this checkpoint?"
        )
    return torch.from_numpy(matrix)
