"""The class of the models that :func:`bitexport.load` returns: ``llama_cpp.Llama`` with fewer traps."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import inspect
import itertools
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from bitexport.errors import GGUFError, UsageError
from bitexport.runtime import log
from bitexport.runtime.chat import use_templates
from bitexport.runtime.library import api, bind
from bitexport.runtime.placement import Placement
from bitexport.runtime.processes import Owner
from bitexport.runtime.remote import Workers, error_of
from bitexport.runtime.threads import ThreadPool
from bitexport.tokenizer.chat import template_of_key

if TYPE_CHECKING:
    from llama_cpp import Llama

#: libllama's LLAMA_POOLING_TYPE_NONE.
_NO_POOLING = 0

#: llama_cpp.Llama.create_completion's default.
DEFAULT_MAX_TOKENS = 16


class PathText(str):
    """A path as text, for llama-cpp-python, which encodes it as UTF-8: file names may be other bytes."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:  # noqa: ARG002
        return os.fsencode(str(self))


class _TokenLimit:
    """Takes the place of stopping criteria, to tell :meth:`generate` how many tokens are asked for.

    Args:
        tokens: the limit; None for the context's.
        criteria: the caller's own stopping criteria.
    """

    def __init__(self, tokens: int | None, criteria: Callable[..., bool] | None) -> None:
        self.tokens = tokens
        self.criteria = criteria

    def __call__(self, ids: Any, scores: Any) -> bool:
        return self.criteria is not None and self.criteria(ids, scores)


@functools.cache
def model_class() -> type[Llama]:
    """A subclass of ``llama_cpp.Llama``, made once our libraries are bound.

    It renders chat templates within limits, see :mod:`bitexport.runtime.chat`, and generates at most as many
    tokens as are asked for, where llama-cpp-python goes on inside an unfinished character. It refuses to
    compute in a forked child, which lacks ggml's threads and would wait for them forever; log-probabilities
    of an echoed prompt, which llama-cpp-python assigns to the wrong tokens; and text from a model that was
    loaded for embeddings.
    """

    class Model(bind().Llama):  # type: ignore[misc]
        # whether a pass of a few tokens computes what single tokens do; see bitexport.runtime.drafts
        drafts_are_exact: bool | None = None
        # whose blocks are in the cache; see bitexport.runtime.block_llama
        blocks_of: object | None = None

        def __init__(
            self,
            *args: Any,
            workers: Workers | None = None,
            placement: Placement | None = None,
            **kwargs: Any,
        ) -> None:
            self._owner = Owner("this model")
            self.workers, self.placement = workers, placement
            if workers is not None and placement is not None:
                kwargs.update(n_gpu_layers=placement.n_gpu_layers, tensor_split=placement.tensor_split)
            self._pool: ThreadPool | None = None
            super().__init__(*args, **kwargs)
            if workers is not None:
                self._stack.callback(workers.close)
            self._metadata = self._complete_metadata
            chosen = kwargs.get("chat_format") or kwargs.get("chat_handler")
            self.template_warnings = use_templates(self, self._metadata, choose=chosen is None)

        @property
        def model_params(self) -> Any:
            return self._model_params

        @model_params.setter
        def model_params(self, params: Any) -> None:
            # llama_cpp.Llama has no argument for the devices
            self._model_params = params
            if self.workers is not None:
                params.devices = self.workers.devices

        @property
        def metadata(self) -> dict[str, str]:
            return self._metadata

        @metadata.setter
        def metadata(self, found: dict[str, str]) -> None:
            # llama_cpp.Llama compiles every template that it sees while it opens the model
            self._complete_metadata = found
            self._metadata = {key: value for key, value in found.items() if not template_of_key(key)}

        def use(self, pool: ThreadPool) -> None:
            """Compute with these threads until the model is closed."""
            self._pool = pool
            self._stack.callback(pool.close)  # before the context is freed: callbacks run last in, first out

        def close(self) -> None:
            if self.workers is not None and not self._owner.here():
                self.leave_open()  # the connections are the parent's
            else:
                super().close()

        def leave_open(self) -> None:
            """Never free the model: a thread may use it until the process ends."""
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))

        def eval(self, tokens: Any) -> None:
            self._owner.check()
            self._check_cache()
            with self._computing():
                super().eval(tokens)

        def eval_every_position(self, tokens: list[int]) -> None:
            """Continue the text with a few tokens, in one pass that keeps the logits of each."""
            self._owner.check()
            self._check_cache()
            begin = len(self._input_ids)
            end = begin + len(tokens)
            self._ctx.kv_cache_seq_rm(-1, begin, -1)
            self._batch.set_batch(batch=tokens, n_past=begin, logits_all=True)
            with self._computing():
                self._ctx.decode(self._batch)
            self.input_ids[begin:end] = tokens
            self.n_tokens = end
            self._requires_eval = False

        def _check_cache(self) -> None:
            if not api().llama_get_memory(self.ctx):
                raise UsageError(
                    f"{self.model_path} has no cache of earlier tokens, so it cannot continue a text; "
                    "it is a model for embeddings or a diffusion model"
                )

        @contextlib.contextmanager
        def _computing(self, blocks_of: object | None = None) -> Iterator[None]:
            """Hold the threads; raise llama-cpp-python's error as ours, with llama.cpp's reason.

            Blocks in the cache are lost unless it is their owner who computes.
            """
            assert self._pool is not None
            log.clear()
            try:
                with self._pool.in_use:
                    if blocks_of is None:
                        self.blocks_of = None
                    yield
            except RuntimeError as error:
                if not str(error).startswith("llama_"):  # a wrong use, not the name of a function that failed
                    raise
                reason = f"{error} ({log.reason('llama.cpp gave no reason')})"
                raise error_of(
                    self.workers,
                    lambda: GGUFError(
                        f"{self.model_path}: {reason}; try a larger n_ctx, or convert or download the file "
                        "again"
                    ),
                ) from error

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            if self.context_params.embeddings and self.pooling_type() != _NO_POOLING:
                # a context that pools has no logits
                raise UsageError(
                    f"{self.model_path} was loaded for embeddings; to generate text, load it without "
                    "embedding=True"
                )
            self._check_cache()
            limit = kwargs.get("stopping_criteria")
            if not isinstance(limit, _TokenLimit):
                return super().generate(*args, **kwargs)
            prompt = args[0] if args else kwargs["tokens"]
            room = self.n_ctx() - len(prompt)
            kwargs["stopping_criteria"] = limit.criteria
            tokens = super().generate(*args, **kwargs)
            return itertools.islice(tokens, room if limit.tokens is None else min(limit.tokens, room))

        def embed(self, *args: Any, **kwargs: Any) -> Any:
            self._owner.check()
            with self._computing():
                return super().embed(*args, **kwargs)

        def create_completion(self, prompt: Any, *args: Any, **kwargs: Any) -> Any:
            given = inspect.signature(super().create_completion).bind(prompt, *args, **kwargs).arguments
            if given.get("echo") and given.get("logprobs") is not None:
                raise UsageError(
                    "echo=True with logprobs: llama-cpp-python assigns the log-probabilities of an echoed "
                    "prompt to the wrong tokens; leave one of them out, or use bitexport eval for likelihoods"
                )
            most = given.get("max_tokens", DEFAULT_MAX_TOKENS)
            given["stopping_criteria"] = _TokenLimit(
                most if most is not None and most > 0 else None, given.get("stopping_criteria")
            )
            return super().create_completion(**given)

    Model.__name__ = Model.__qualname__ = "Llama"
    return Model
