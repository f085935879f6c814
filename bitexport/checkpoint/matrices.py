"""The matrices that a weight of the checkpoint consists of: itself, or those of all experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bitexport.checkpoint.reader import Checkpoint
from bitexport.errors import UnsupportedError


def matrices(checkpoint: Checkpoint, name: str) -> Iterator[tuple[Checkpoint, str]]:
    """A weight as matrices ``[out, in]``, each as the name of a tensor in a checkpoint that has it.

    Args:
        name: of a tensor ``[out, in]``, which is given back, or ``[experts, out, in]``.

    Raises:
        UnsupportedError: the tensor has another number of dimensions.
    """
    info = checkpoint.info(name)
    if len(info.shape) == 2:
        yield checkpoint, name
        return
    if len(info.shape) != 3:
        raise UnsupportedError(
            f"tensor '{name}' has shape {list(info.shape)}; expected a matrix, or one for each expert"
        )
    size = info.nbytes // max(info.shape[0], 1)
    for expert in range(info.shape[0]):
        part = replace(info, shape=info.shape[1:], offset=info.offset + expert * size, nbytes=size)
        part_name = f"{name}[{expert}]"
        yield replace(checkpoint, tensors={**checkpoint.tensors, part_name: part}), part_name
