"""A model that ``bitexport run`` generates text with: what :mod:`bitexport.runtime.generation` uses of one.

It has the names of ``llama_cpp.Llama``, whose import takes longer than to load a model of 2B, and the same
settings, so that both give the same text.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitexport.errors import BitexportError, GGUFError, UsageError
from bitexport.runtime import ggml, log
from bitexport.runtime.library import api
from bitexport.runtime.overrides import override_entries
from bitexport.runtime.pieces import piece
from bitexport.runtime.processes import Owner
from bitexport.runtime.threads import ThreadPool

if TYPE_CHECKING:
    from bitexport.runtime.placement import Placement
    from bitexport.runtime.remote import Workers

_BATCH = 512


class TextModel:
    """An open model with a context of its own.

    Args:
        path: a file that libllama can open without crashing, see
            :func:`bitexport.runtime.loading.checked_file`.
        overrides: metadata that its header lacks.
        n_ctx: the context in tokens.
        n_threads: the number of threads.
        workers: connections to other machines that compute some of the layers.
        placement: which layers.

    Attributes:
        model, ctx: the ``llama_model`` and ``llama_context`` pointers.
        input_ids: the tokens in the context; only the first ``n_tokens`` count.
        n_tokens: how many.

    Raises:
        GGUFError: libllama rejects it.
        WorkerError: a worker was lost.
        NativeLibraryError: our library is missing, or the threads cannot be started.
    """

    def __init__(
        self,
        path: Path,
        overrides: Mapping[str, str],
        *,
        n_ctx: int,
        n_threads: int,
        workers: Workers | None = None,
        placement: Placement | None = None,
    ) -> None:
        self.path, self.workers, self.placement = path, workers, placement
        self.model: Any = None
        self.ctx: Any = None
        self._pool: ThreadPool | None = None
        self._owner = Owner("this model")
        self._api = api()
        ggml.cpu_tier()
        log.clear()
        self._api.llama_backend_init()
        try:
            self._load(overrides)
            self._open(n_ctx, n_threads)
        except BaseException:
            self.close()
            raise
        self.vocab: Any = self._api.llama_model_get_vocab(self.model)
        self._bos = int(self._api.llama_vocab_bos(self.vocab))
        self.input_ids: list[int] = []
        self.n_tokens = 0

    def _load(self, overrides: Mapping[str, str]) -> None:
        params = self._api.llama_model_default_params()
        params.kv_overrides = override_entries(self._api, overrides)
        params.load_mode = self._api.LLAMA_LOAD_MODE_MMAP
        if self.workers is not None:
            from bitexport.runtime.remote import offload

            offload(params, self.workers, self.placement)
        self.model = self._api.llama_model_load_from_file(os.fsencode(self.path), params)
        if not self.model:
            from bitexport.runtime.loading import load_error

            raise self._lost_worker() or load_error(self.path, "libllama gave no reason")

    def _open(self, n_ctx: int, n_threads: int) -> None:
        params = self._api.llama_context_default_params()
        params.n_ctx = n_ctx
        self._batch = params.n_batch = params.n_ubatch = min(n_ctx, _BATCH)
        params.n_threads = params.n_threads_batch = n_threads
        params.flash_attn_type = self._api.LLAMA_FLASH_ATTN_TYPE_ENABLED  # our kernels, as in `load`
        self.ctx = self._api.llama_init_from_model(self.model, params)
        if not self.ctx:
            reason = log.reason("libllama gave no reason")
            raise self._lost_worker() or GGUFError(
                f"{self.path}: cannot create a context of {n_ctx} tokens: {reason}; try a shorter one"
            )
        self._pool = ThreadPool(self.ctx, n_threads)

    def _lost_worker(self) -> BitexportError | None:
        return None if self.workers is None else self.workers.failure()

    def close(self) -> None:
        """Free the model. Closing twice does nothing."""
        if self.workers is not None and not self._owner.here():
            self.model = self.ctx = None  # the connections are the parent's
            return
        if self._pool is not None:
            self._pool.close()
        if self.ctx:
            self._api.llama_free(self.ctx)
        if self.model:
            self._api.llama_model_free(self.model)
        self._pool = self.ctx = self.model = None
        if self.workers is not None:
            self.workers.close()

    def __del__(self) -> None:
        if hasattr(self, "_owner"):
            self.close()

    def n_ctx(self) -> int:
        return int(self._api.llama_n_ctx(self.ctx))

    def n_vocab(self) -> int:
        return int(self._api.llama_vocab_n_tokens(self.vocab))

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """The ids of a text, with the special tokens that the model adds around it if ``add_bos``.

        Args:
            text: in UTF-8.
            add_bos: add them.
            special: take the texts of special tokens for those tokens.
        """
        room = len(text) + 16
        while True:
            ids = (self._api.llama_token * room)()
            count = self._api.llama_tokenize(self.vocab, text, len(text), ids, room, add_bos, special)
            if count >= 0:
                return list(ids[:count])
            room = -count

    def detokenize(self, tokens: Sequence[int], prev_tokens: Sequence[int] = ()) -> bytes:  # noqa: ARG002
        """The bytes of some tokens, without special ones."""
        text = b"".join(piece(self.vocab, token, special=False) for token in tokens)
        return text[1:] if tokens and tokens[0] == self._bos and text.startswith(b" ") else text

    def reset(self) -> None:
        """Forget all tokens."""
        self.n_tokens = 0

    def eval(self, tokens: Sequence[int]) -> None:
        """Continue the first ``n_tokens`` tokens with these, and compute the logits after the last one.

        Raises:
            UsageError: in a forked child; or the model cannot continue a text.
            GGUFError: libllama fails.
            WorkerError: a worker was lost.
        """
        self._owner.check()
        memory = self._api.llama_get_memory(self.ctx)
        if not memory:
            raise UsageError(
                f"{self.path} has no cache of earlier tokens, so it cannot continue a text; "
                "it is a model for embeddings or a diffusion model"
            )
        self._api.llama_memory_seq_rm(memory, 0, self.n_tokens, -1)
        del self.input_ids[self.n_tokens :]
        for begin in range(0, len(tokens), self._batch):
            batch = tokens[begin : begin + self._batch]
            self._decode(batch)
            self.input_ids.extend(batch)
            self.n_tokens += len(batch)

    def _decode(self, tokens: Sequence[int]) -> None:
        assert self._pool is not None
        log.clear()
        ids = (self._api.llama_token * len(tokens))(*tokens)
        with self._pool.in_use:
            code = self._api.llama_decode(self.ctx, self._api.llama_batch_get_one(ids, len(tokens)))
        if code != 0:
            reason = log.reason("llama.cpp gave no reason")
            raise self._lost_worker() or GGUFError(
                f"{self.path}: llama_decode returned {code} ({reason}); try a larger n_ctx, or convert or "
                "download the file again"
            )
