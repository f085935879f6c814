"""Runs the reference with the embedding and the output head of a converted file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bitexport.errors import GGUFError
from bitexport.gguf.dequantize import Matrix
from bitexport.gguf.embeddings import Embeddings
from bitexport.reference.grids import GRIDS, Grid, on_grid

#: How far a row may be from the checkpoint's, as a fraction of its L2 norm: the rounding error of each type,
#: with a margin for quantizers other than ggml's.
ROW_ERROR = {
    **{"f32": 1e-6, "bf16": 0.004, "f16": 0.001},
    **{"i2_s": 1e-6, **dict.fromkeys(("q2_0", "tq1_0", "tq2_0"), 0.002)},
    **{"q8_0": 0.01, "q6_k": 0.04, "q5_k": 0.07, "q4_k": 0.14},
}


def unfaithful_row(model: Any, embeddings: Embeddings) -> str | None:
    """The first row of the file's embedding or head that differs from the checkpoint's by more than rounding.

    Without this check, a comparison that gives the reference the file's matrices would pass with any content.

    Returns:
        A clause that names the row; None if there is no such row.

    Raises:
        GGUFError: a shape differs from the model's.
    """
    head = embeddings.embedding if embeddings.head is None else embeddings.head
    for what, found, layer, kind in (
        ("token embedding", embeddings.embedding, model.get_input_embeddings(), embeddings.embedding_type),
        ("output head", head, model.get_output_embeddings(), embeddings.head_type),
    ):
        expected = layer.weight.data
        error = (_as_tensor(found, expected) - expected).norm(dim=1)
        allowed = ROW_ERROR.get(kind, 0.1) * expected.norm(dim=1) + 1e-6
        wrong = torch.nonzero(~(error <= allowed))
        if len(wrong):
            row = int(wrong[0])
            return (
                f"row {row} of the {what} is off by {float(error[row] / expected[row].norm()):.1%} of its "
                f"L2 norm, and {len(wrong)} of {len(expected)} rows by more than {kind} rounding explains"
            )
    return None


@contextmanager
def replaced_embeddings(model: Any, embeddings: Embeddings) -> Iterator[None]:
    """Within the block, ``model`` uses the file's embedding and output head.

    The input of the head is rounded as ggml rounds it for a head of that type, see :func:`rounded_for_head`.

    Args:
        model: a transformers causal language model in float32.

    Raises:
        GGUFError: a shape differs from the model's.
    """
    lookup, output = model.get_input_embeddings(), model.get_output_embeddings()
    kept = lookup.weight.data, output.weight.data
    rounding = output.register_forward_pre_hook(
        lambda _module, inputs: (rounded_for_head(inputs[0], embeddings.head_type),)
    )
    try:
        lookup.weight.data = _as_tensor(embeddings.embedding, kept[0])
        head = embeddings.head
        output.weight.data = lookup.weight.data if head is None else _as_tensor(head, kept[1])
        yield
    finally:
        # When they are tied, both are the same parameter.
        lookup.weight.data = kept[0]
        output.weight.data = kept[1]
        rounding.remove()


def rounded_for_head(x: torch.Tensor, head_type: str) -> torch.Tensor:
    """Round float32 activations as ggml's matrix product does before it multiplies.

    Args:
        x: float32 ``[..., hidden]``.
        head_type: GGUF type of the matrix; for one that is not in :data:`~bitexport.reference.grids.GRIDS`,
            ``x`` is returned unchanged.

    Returns:
        float32, of the same shape.
    """
    return on_grid(x, GRIDS.get(head_type, Grid.FLOAT))


def _as_tensor(matrix: Matrix, expected: torch.Tensor) -> torch.Tensor:
    """``matrix`` as a tensor, if it has the shape of ``expected``."""
    if matrix.shape != tuple(expected.shape):
        raise GGUFError(
            f"the file's embedding has shape {matrix.shape}, the checkpoint's {tuple(expected.shape)}; "
            "was the file converted from this checkpoint?"
        )
    return torch.from_numpy(matrix)
