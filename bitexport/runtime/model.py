"""The class of the models that :func:`bitexport.load` returns: ``llama_cpp.Llama`` with fewer traps."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bitexport.errors import GGUFError, UsageError
from bitexport.runtime import log
from bitexport.runtime.chat import use_templates
from bitexport.runtime.library import bind
from bitexport.runtime.processes import Owner
from bitexport.tokenizer.chat import template_of_key

if TYPE_CHECKING:
    from llama_cpp import Llama

#: libllama's LLAMA_POOLING_TYPE_NONE.
_NO_POOLING = 0


@functools.cache
def model_class() -> type[Llama]:
    """A subclass of ``llama_cpp.Llama``, made once our libraries are bound.

    It renders chat templates within limits, see :mod:`bitexport.runtime.chat`. It refuses to compute in a
    forked child, which lacks ggml's threads and would wait for them forever; log-probabilities of an echoed
    prompt, which llama-cpp-python assigns to the wrong tokens; and text from a model that was loaded for
    embeddings.
    """

    class Model(bind().Llama):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._owner = Owner("this model")
            super().__init__(*args, **kwargs)
            self._metadata = self._complete_metadata
            chosen = kwargs.get("chat_format") or kwargs.get("chat_handler")
            self.template_warnings = use_templates(self, self._metadata, choose=chosen is None)

        @property
        def metadata(self) -> dict[str, str]:
            return self._metadata

        @metadata.setter
        def metadata(self, found: dict[str, str]) -> None:
            # llama_cpp.Llama compiles every template that it sees while it opens the model
            self._complete_metadata = found
            self._metadata = {key: value for key, value in found.items() if not template_of_key(key)}

        def eval(self, tokens: Any) -> None:
            self._owner.check()
            self._check_cache()
            with self._errors():
                super().eval(tokens)

        def _check_cache(self) -> None:
            if not bind().llama_cpp.llama_get_memory(self.ctx):
                raise UsageError(
                    f"{self.model_path} has no cache of earlier tokens, so it cannot continue a text; "
                    "it is a model for embeddings or a diffusion model"
                )

        @contextlib.contextmanager
        def _errors(self) -> Iterator[None]:
            """Turn llama-cpp-python's error for a failed evaluation into ours, with llama.cpp's reason."""
            log.clear()
            try:
                yield
            except RuntimeError as error:
                if not str(error).startswith("llama_"):  # a wrong use, not the name of a function that failed
                    raise
                raise GGUFError(
                    f"{self.model_path}: {error} ({log.reason('llama.cpp gave no reason')}); try a larger "
                    "n_ctx, or convert or download the file again"
                ) from error

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            if self.context_params.embeddings and self.pooling_type() != _NO_POOLING:
                # a context that pools has no logits
                raise UsageError(
                    f"{self.model_path} was loaded for embeddings; to generate text, load it without "
                    "embedding=True"
                )
            self._check_cache()
            return super().generate(*args, **kwargs)

        def create_embedding(self, *args: Any, **kwargs: Any) -> Any:
            self._owner.check()
            with self._errors():
                return super().create_embedding(*args, **kwargs)

        def create_completion(self, prompt: Any, *args: Any, **kwargs: Any) -> Any:
            if kwargs.get("echo") and kwargs.get("logprobs") is not None:
                raise UsageError(
                    "echo=True with logprobs: llama-cpp-python assigns the log-probabilities of an echoed "
                    "prompt to the wrong tokens; leave one of them out, or use bitexport eval for likelihoods"
                )
            return super().create_completion(prompt, *args, **kwargs)

    Model.__name__ = Model.__qualname__ = "Llama"
    return Model
