"""A session that evaluates blocks, with attention in both directions inside them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bitexport.errors import UsageError
from bitexport.runtime.block_checks import check_blocks
from bitexport.runtime.session import Session


class BlockSession(Session):
    """A :class:`Session` of a model of block diffusion; an evaluator of :class:`bitexport.blocks.Evaluator`.

    Its methods with causal attention, such as :meth:`Session.logits`, are not for use here.

    Attributes:
        diffusion: the file's settings.

    Raises:
        UsageError: the file is not a model of block diffusion, its block does not fit the context, or it has
            sliding windows.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        self.diffusion = found = check_blocks(path, instead="--decode plain")
        super().__init__(path, **options)
        if found.block_size > self.n_ctx:
            size, context = found.block_size, self.n_ctx
            self.close()
            raise UsageError(
                f"{path} is decoded in blocks of {size} tokens, and the context has only {context}; set a "
                "larger --ctx"
            )
        self._api.llama_set_causal_attn(self._context, False)
        self._memory = self._api.llama_get_memory(self._context)

    def evaluate(self, ids: Sequence[int], rows: Sequence[int], *, keep: bool) -> npt.NDArray[np.float32]:
        """See :meth:`bitexport.blocks.Evaluator.evaluate`.

        Raises:
            UsageError: the tokens do not fit the context, or are not in the vocabulary.
        """
        self._check_room(ids)
        assert self._batch is not None
        self._decode_batch(self._batch.fill(ids, self._used, rows))
        # only the rows that were asked for have logits, one behind the other
        logits = self._view.of(self._api.llama_get_logits(self._context), len(rows), self.n_vocab).copy()
        if keep:
            self._used += len(ids)
        elif not self._api.llama_memory_seq_rm(self._memory, 0, self._used, -1):
            raise UsageError(
                f"{self.path} keeps a state that cannot forget a part, so it has no blocks; "
                "use --decode plain"
            )
        return logits
