"""Vectors of texts from our libllama: one for each token, or one for each text."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bitexport.errors import GGUFError
from bitexport.gguf.embedding_settings import POOLING_TYPES
from bitexport.gguf.reader import read_gguf
from bitexport.runtime import log
from bitexport.runtime.session import Session

#: Tokens of one evaluation, and texts in it. A longer text is evaluated alone, in several parts.
BATCH_TOKENS = 512
BATCH_TEXTS = 64

#: libllama pads a context to a multiple of this.
_PADDING = 256


class EmbeddingSession(Session):
    """A model that returns vectors instead of logits.

    Args:
        path: the GGUF file.
        pooling: ``mean``, ``cls`` or ``last``; None for a vector of each token.
        longest: the number of tokens of the longest text.
        batch_tokens, batch_texts: the most that one evaluation has of each.
        n_threads: the number of threads; 0 for one per core.
        exact: as for :class:`Session`.

    Raises:
        GGUFError, UsageError, NativeLibraryError: as for :class:`Session`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        pooling: str | None,
        longest: int,
        batch_tokens: int = BATCH_TOKENS,
        batch_texts: int = BATCH_TEXTS,
        n_threads: int = 0,
        exact: bool = True,
    ) -> None:
        metadata = read_gguf(os.fspath(path)).metadata
        self.pooling = pooling
        self.causal = bool(metadata.get(f"{metadata.get('general.architecture')}.attention.causal", True))
        # without a causal mask, every token of a text needs all the others: it cannot be divided
        self.batch_tokens = batch_tokens if self.causal else max(batch_tokens, longest)
        self.batch_texts = min(batch_texts, self.batch_tokens)  # libllama reserves an output for each
        room = max(longest, self.batch_tokens)
        super().__init__(path, n_ctx=-(-room // _PADDING) * _PADDING, n_threads=n_threads, exact=exact)
        self.width = int(self._api.llama_model_n_embd(self._model))

    def _context_params(self, n_ctx: int, n_threads: int, exact: bool, sequences: int) -> Any:  # noqa: ARG002
        params = super()._context_params(n_ctx, n_threads, exact, sequences=1)
        params.embeddings = True
        params.pooling_type = POOLING_TYPES[self.pooling] if self.pooling else 0
        params.n_seq_max = self.batch_texts
        params.kv_unified = True  # the texts of a batch share the context, however long each is
        params.n_batch = params.n_ubatch = self.batch_tokens
        return params

    def token_vectors(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """The vector of every token of one text, from a session without pooling: float32 ``[T, width]``.

        Raises:
            UsageError: there are no tokens, or more than the context has room for.
        """
        assert self.pooling is None
        self.clear()
        self._check_room(ids)
        parts = []
        for begin in range(0, len(ids), self.batch_tokens):
            part = ids[begin : begin + self.batch_tokens]
            self._evaluate([part], begin)
            flat = np.ctypeslib.as_array(
                self._api.llama_get_embeddings(self._context), shape=(len(part) * self.width,)
            )
            parts.append(flat.reshape(len(part), self.width).copy())
        return np.concatenate(parts)

    def text_vectors(self, texts: Sequence[Sequence[int]]) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """One vector for each text, from a session with pooling.

        Texts of similar length are evaluated together, so they come in another order than they are given.

        Args:
            texts: the token ids of each text.

        Yields:
            The index of a text, and its vector, float32 ``[width]``, not normalized.

        Raises:
            UsageError: a text has no tokens, or more than the context has room for.
        """
        assert self.pooling is not None
        for ids in texts:
            self._check_room(ids)
        for batch in self._batches(texts):
            self.clear()
            if len(texts[batch[0]]) > self.batch_tokens:
                yield batch[0], self._long_text(texts[batch[0]])
                continue
            self._evaluate([texts[index] for index in batch])
            for sequence, index in enumerate(batch):
                yield index, self._pooled(sequence)

    def _batches(self, texts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Indices of texts to evaluate together, the longest first: memory runs out early, if at all."""
        batch: list[int] = []
        tokens = 0
        for index in sorted(range(len(texts)), key=lambda index: -len(texts[index])):
            if batch and (tokens + len(texts[index]) > self.batch_tokens or len(batch) == self.batch_texts):
                yield batch
                batch, tokens = [], 0
            batch.append(index)
            tokens += len(texts[index])
        if batch:
            yield batch

    def _long_text(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """The vector of a text that needs several evaluations: libllama pools each of them separately."""
        total = np.zeros(self.width, dtype=np.float64)
        first = last = np.zeros(self.width, dtype=np.float32)
        for begin in range(0, len(ids), self.batch_tokens):
            part = ids[begin : begin + self.batch_tokens]
            self._evaluate([part], begin)
            last = self._pooled(0)
            first = last if begin == 0 else first
            total += last.astype(np.float64) * len(part)
        if self.pooling == "mean":
            return (total / len(ids)).astype(np.float32)
        return first if self.pooling == "cls" else last

    def _pooled(self, sequence: int) -> npt.NDArray[np.float32]:
        found = self._api.llama_get_embeddings_seq(self._context, sequence)
        if not found:
            raise GGUFError(f"{self.path}: libllama returned no embedding ({log.reason('no reason given')})")
        return np.ctypeslib.as_array(found, shape=(self.width,)).copy()

    def _evaluate(self, texts: Sequence[Sequence[int]], begin: int = 0) -> None:
        """Evaluate texts, each as one sequence, from position ``begin`` on."""
        count = sum(map(len, texts))
        batch = self._api.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            at = 0
            for sequence, ids in enumerate(texts):
                for position, token in enumerate(ids, start=begin):
                    batch.token[at] = token
                    batch.pos[at] = position
                    batch.n_seq_id[at] = 1
                    batch.seq_id[at][0] = sequence
                    batch.logits[at] = True
                    at += 1
            self._decode_batch(batch)
        finally:
            self._api.llama_batch_free(batch)
