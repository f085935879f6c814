"""One model and one context on our libllama, driven token by token: :class:`Session` returns logits."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from bitexport.errors import GGUFError, UsageError
from bitexport.runtime import ggml, log
from bitexport.runtime.library import api
from bitexport.runtime.limits import check_threads, checked_context
from bitexport.runtime.loading import can_try, checked_file, load_error
from bitexport.runtime.overrides import override_entries
from bitexport.runtime.pieces import piece
from bitexport.runtime.processes import Owner
from bitexport.runtime.remote import Workers, error_of, offload
from bitexport.runtime.threads import ThreadPool, default_threads
from bitexport.runtime.token_batch import LogitsView, TokenBatch
from bitexport.runtime.trace import Tracer

#: The class of a session, for subclasses.
Opened = TypeVar("Opened", bound="Session")

_F32 = 0  # ggml's type number
_MAX_BATCH = 512


class Session:
    """One model and one context, evaluated position by position.

    Args:
        path: the GGUF file.
        n_ctx: the context in tokens; 0 for the model's own, up to 4096.
        n_threads: the number of threads; 0 for one per core.
        exact: use a float32 key-value cache and plain attention, the arithmetic that is closest to PyTorch's;
            otherwise llama.cpp's defaults, as users run it.
        memory_map: map the file instead of reading it (weights that are repacked are read in any case).
        tracer: called for every tensor that is computed; costs a little time even while it does not record.
        workers: see :func:`bitexport.load`.
        layers: see :func:`bitexport.load`.

    Raises:
        GGUFError: the file is missing, damaged, or cannot be run.
        UsageError: ``n_ctx`` or ``n_threads`` is out of range.
        NativeLibraryError: see :func:`bitexport.runtime.library.api`.
        WorkerError: a worker cannot be used, or was lost.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        n_ctx: int = 0,
        n_threads: int = 0,
        exact: bool = True,
        memory_map: bool = True,
        tracer: Tracer | None = None,
        workers: str | Sequence[str] = (),
        layers: Sequence[int] = (),
    ) -> None:
        self._model: Any = None
        self._context: Any = None
        self._batch: TokenBatch | None = None
        self.workers: Workers | None = None
        self._pools: list[ThreadPool] = []  # the last one is in use
        self._tracer = tracer
        self._owner = Owner("this session's model")
        if layers and not workers:
            raise UsageError("layers divides a model among workers, and there are none; give workers")
        self.workers = Workers(workers) if workers else None
        self.path, overrides = checked_file(path, trial=not workers or can_try(path))
        self._api = api()
        self.tier = ggml.cpu_tier()
        log.clear()
        self._api.llama_backend_init()
        n_threads = n_threads or default_threads()
        check_threads(n_threads)
        n_ctx = checked_context(self.path, n_ctx)
        self.placement = None if self.workers is None else self.workers.place(self.path, layers, n_ctx)
        self._load_model(memory_map, overrides)
        self._open_context(n_ctx, n_threads, exact)
        self._vocab = self._api.llama_model_get_vocab(self._model)
        self.n_vocab: int = self._api.llama_vocab_n_tokens(self._vocab)
        self.n_ctx: int = self._api.llama_n_ctx(self._context)
        self._view = LogitsView()
        self._used = 0  # positions in the cache

    def _load_model(self, memory_map: bool, overrides: Mapping[str, str]) -> None:
        params = self._api.llama_model_default_params()
        params.kv_overrides = override_entries(self._api, overrides)
        offload(params, self.workers, self.placement)
        params.load_mode = self._api.LLAMA_LOAD_MODE_MMAP if memory_map else self._api.LLAMA_LOAD_MODE_NONE
        self._model = self._api.llama_model_load_from_file(os.fsencode(self.path), params)
        if not self._model:
            raise error_of(self.workers, lambda: load_error(self.path, "libllama gave no reason"))

    def _context_params(self, n_ctx: int, n_threads: int, exact: bool, sequences: int) -> Any:
        params = self._api.llama_context_default_params()
        params.n_ctx = n_ctx * sequences
        params.n_seq_max = sequences
        params.n_batch = params.n_ubatch = _MAX_BATCH
        params.n_threads = params.n_threads_batch = n_threads
        if exact:
            params.type_k = params.type_v = _F32
            params.flash_attn_type = self._api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if self._tracer is not None:
            params.cb_eval = self._tracer.callback
        return params

    def _open_context(self, n_ctx: int, n_threads: int, exact: bool, sequences: int = 1) -> None:
        params = self._context_params(n_ctx, n_threads, exact, sequences)
        self._context = self._api.llama_init_from_model(self._model, params)
        if not self._context:
            reason = log.reason("libllama gave no reason")
            error = error_of(
                self.workers,
                lambda: GGUFError(
                    f"{self.path}: cannot create a context of {n_ctx} tokens: {reason}; try a shorter one"
                ),
            )
            self.close()
            raise error
        self.sequences = sequences
        self._batch = TokenBatch(self._api, _MAX_BATCH)
        self._start_threads(n_threads)

    def reopen(self, n_ctx: int, n_threads: int, sequences: int) -> None:
        """Replace the context by an empty one for several sequences, with llama.cpp's defaults.

        Args:
            n_ctx: the context of each sequence in tokens.
            n_threads: the number of threads.
            sequences: the number of sequences, for :meth:`advance_together`.

        Raises:
            UsageError: n_ctx or n_threads is out of range.
            GGUFError: such a context cannot be created.
        """
        check_threads(n_threads)
        n_ctx = checked_context(self.path, n_ctx)
        self._close_context()
        self._open_context(n_ctx, n_threads, exact=False, sequences=sequences)
        self.n_ctx = self._api.llama_n_ctx(self._context) // sequences
        self._used = 0

    def _start_threads(self, n_threads: int) -> None:
        # the previous pool is needed until this one is used for the first time; see ThreadPool.end
        self._pools.append(ThreadPool(self._context, n_threads))

    def __enter__(self: Opened) -> Opened:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the model and the context. Closing twice does nothing."""
        if self.workers is not None and not self._owner.here():
            self._model = self._context = None  # the connections are the parent's
            return
        self._close_context()
        if self._model:
            self._api.llama_model_free(self._model)
        self._model = None
        if self.workers is not None:
            self.workers.close()

    def _close_context(self) -> None:
        for pool in self._pools:
            pool.close()
        self._pools.clear()
        if self._batch is not None:
            self._batch.free()
        self._batch = None
        if self._context:
            self._api.llama_free(self._context)
        self._context = None

    def __del__(self) -> None:
        if hasattr(self, "_pools"):  # not if the constructor of a subclass failed
            self.close()

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors in the file."""
        return int(self._api.llama_model_size(self._model))

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return int(self._api.llama_model_n_params(self._model))

    @property
    def description(self) -> str:
        """llama.cpp's description of the model: architecture, size class, file type."""
        buffer = ctypes.create_string_buffer(256)
        self._api.llama_model_desc(self._model, buffer, len(buffer))
        return buffer.value.decode("utf-8", errors="replace")

    def set_threads(self, n_threads: int) -> None:
        """Change the number of threads."""
        check_threads(n_threads)
        self._start_threads(n_threads)
        self._api.llama_set_n_threads(self._context, n_threads, n_threads)

    def tokenize(self, text: str, add_special: bool = True) -> list[int]:
        """Token ids of ``text``, with or without the special tokens that the model adds around it."""
        data = text.encode("utf-8")
        room = len(data) + 16
        ids = (self._api.llama_token * room)()
        count = self._api.llama_tokenize(self._vocab, data, len(data), ids, room, add_special, True)
        if count < 0:
            ids = (self._api.llama_token * -count)()
            count = self._api.llama_tokenize(self._vocab, data, len(data), ids, -count, add_special, True)
        return list(ids[:count])

    def piece(self, token: int, special: bool = True) -> bytes:
        """The bytes of one token; see :func:`bitexport.runtime.pieces.piece`."""
        return piece(self._vocab, token, special)

    def detokenize(self, ids: Sequence[int], special: bool = True) -> str:
        """The text of some tokens, with or without special ones; bytes that are not UTF-8 become ``\\ufffd``.

        A space that the tokenizer put in front of the text is not a part of it.
        """
        tokens = (self._api.llama_token * len(ids))(*ids)
        room = 16 * len(ids) + 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = self._api.llama_detokenize(self._vocab, tokens, len(ids), buffer, room, False, special)
            if count >= 0:
                return buffer.raw[:count].decode("utf-8", errors="replace")
            room = -count

    @property
    def end_of_text(self) -> int | None:
        """The file's end-of-text token; None if it has none."""
        token = int(self._api.llama_vocab_eos(self._vocab))
        return token if token >= 0 else None

    def end_tokens(self) -> list[int]:
        """All tokens at which llama.cpp ends generation."""
        return [token for token in range(self.n_vocab) if self._api.llama_vocab_is_eog(self._vocab, token)]

    def clear(self) -> None:
        """Empty the context, so that the next token is the first."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        self._used = 0

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits after every position of ``ids``, starting from an empty context.

        Args:
            ids: T token ids.

        Returns:
            float32, shape ``[T, V]``.

        Raises:
            UsageError: T is 0 or longer than the context.
        """
        self.clear()
        return np.concatenate(list(self.logits_in_parts(ids)))

    def logits_in_parts(self, ids: Sequence[int]) -> Iterator[npt.NDArray[np.float32]]:
        """Like :meth:`logits`, but continuing the context, in arrays of at most 512 positions."""
        self._check_room(ids)
        for begin in range(0, len(ids), _MAX_BATCH):
            batch = ids[begin : begin + _MAX_BATCH]
            self._decode(batch, every_position=True)
            flat = np.ctypeslib.as_array(
                self._api.llama_get_logits(self._context), shape=(len(batch) * self.n_vocab,)
            )
            yield flat.reshape(len(batch), self.n_vocab).copy()

    def feed(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Continue the context with ``ids`` and return the logits after the last of them, float32 ``[V]``."""
        self.advance(ids)
        last = self._api.llama_get_logits_ith(self._context, -1)
        return self._view.of(last, 1, self.n_vocab).copy().reshape(self.n_vocab)

    def advance(self, ids: Sequence[int]) -> None:
        """Continue the context with ``ids`` and wait until they are computed."""
        self._check_room(ids)
        for begin in range(0, len(ids), _MAX_BATCH):
            self._decode(ids[begin : begin + _MAX_BATCH], every_position=False)
        self._api.llama_synchronize(self._context)

    def advance_together(self, ids: Sequence[int]) -> None:
        """Continue ``len(ids)`` sequences by one token each, in one evaluation.

        All sequences must have the same length, and :meth:`reopen` must have made room for them.

        Raises:
            UsageError: there are more sequences than in the context, or the context is full.
        """
        if len(ids) > self.sequences:
            raise UsageError(
                f"{len(ids)} sequences do not fit a context that was opened for {self.sequences}; reopen it"
            )
        self._check_room(ids, together=True)
        self._decode(ids, every_position=True, together=True)
        self._api.llama_synchronize(self._context)

    def _check_room(self, ids: Sequence[int], together: bool = False) -> None:
        if not ids:
            raise UsageError("there are no tokens to run; give a non-empty text")
        positions = self._used + (1 if together else len(ids))
        if positions > self.n_ctx:
            raise UsageError(f"{positions} tokens do not fit a context of {self.n_ctx}; shorten the text")
        self._check_ids(ids)

    def _check_ids(self, ids: Sequence[int]) -> None:
        if min(ids) < 0 or max(ids) >= self.n_vocab:
            raise UsageError(
                f"a token id is outside 0..{self.n_vocab - 1}; expected ids of the file's own tokenizer"
            )

    def _decode(self, ids: Sequence[int], *, every_position: bool, together: bool = False) -> None:
        """Evaluate ``ids``: as consecutive tokens, or ``together`` as the next token of one sequence each."""
        assert self._batch is not None
        if together:
            self._decode_batch(self._batch.fill_together(ids, self._used))
        else:
            rows = slice(None) if every_position else slice(-1, None)
            self._decode_batch(self._batch.fill(ids, self._used, rows))
        self._used += 1 if together else len(ids)

    def _decode_batch(self, batch: Any) -> None:
        self._owner.check()
        log.clear()
        with self._pools[-1].in_use:
            code = self._api.llama_decode(self._context, batch)
        if code != 0:
            raise error_of(
                self.workers,
                lambda: GGUFError(
                    f"{self.path}: llama_decode failed with code {code}: {log.reason('no reason given')}"
                ),
            )
        while len(self._pools) > 1:
            self._pools.pop(0).end()
