"""The PyTorch side of block decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bitexport.checkpoint import open_checkpoint
from bitexport.checkpoint.block_diffusion import diffusion_settings
from bitexport.errors import UsageError
from bitexport.reference.model import Reference


class BlockReference:
    """Evaluates blocks with transformers; an evaluator of :class:`bitexport.blocks.Evaluator`.

    Attributes:
        diffusion: the checkpoint's settings.

    Raises:
        UsageError: the checkpoint is not a model of block diffusion.
        CheckpointError: its settings are invalid.
    """

    def __init__(self, reference: Reference) -> None:
        found = diffusion_settings(open_checkpoint(reference.path).config)
        if found is None:
            raise UsageError(f"{reference.path} is a plain model; expected one of block diffusion")
        self.diffusion = found
        self._reference = reference
        self._cache: Any = None

    def clear(self) -> None:
        """Empty the cache."""
        self._cache = None

    def evaluate(self, ids: Sequence[int], rows: Sequence[int], *, keep: bool) -> npt.NDArray[np.float32]:
        """See :meth:`bitexport.blocks.Evaluator.evaluate`."""
        before = 0 if self._cache is None else int(self._cache.get_seq_length())
        everything = torch.zeros(1, 1, len(ids), before + len(ids))  # added to the scores: all are seen
        positions = torch.arange(before, before + len(ids))[None]
        output = self._reference.run(
            ids,
            attention_mask=everything,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache = output.past_key_values
        if not keep:
            self._cache.crop(-len(ids))  # how many to remove
        return output.logits[0, list(rows)].numpy()  # type: ignore[no-any-return]
