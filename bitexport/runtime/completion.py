"""Generates text: the function behind ``bitexport run``."""

from __future__ import annotations

import codecs
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from bitexport.errors import UsageError
from bitexport.runtime.library import bind
from bitexport.runtime.limits import check_text, check_threads, checked_context
from bitexport.runtime.loading import load
from bitexport.runtime.threads import default_threads


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen, with llama.cpp's samplers: top-k, then top-p, then temperature.

    Attributes:
        temperature: 0 always chooses the most likely token; 1 uses the model's probabilities unchanged.
        top_k: sample only from this many most likely tokens; 0 for all.
        top_p: sample only from the most likely tokens whose probabilities add up to this; 1 for all.
        seed: the same seed gives the same text on the same machine.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UsageError(
                f"temperature {self.temperature}, top-k {self.top_k}, top-p {self.top_p}: expected "
                "temperature and top-k of 0 or more, and top-p above 0 and at most 1"
            )


class Completion:
    """The continuation of a prompt: iterate over it to get the text in pieces.

    The attributes are final when the iteration has ended.

    Attributes:
        prompt_tokens: the number of tokens of the prompt.
        tokens: the number of generated tokens.
        finish_reason: ``"stop"`` at an end-of-text token, ``"length"`` at the limit; None before.
        max_tokens: the limit: as requested, or fewer if the context ends before.
        load_seconds: the time to load the model.
        seconds: the time from the start of the iteration to its end.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        prompt: str,
        *,
        sampling: Sampling = Sampling(),
        max_tokens: int = 256,
        n_ctx: int = 0,
        threads: int = 0,
    ) -> None:
        """Load the model and check that the prompt fits.

        Args:
            path: the GGUF file.
            prompt: the text to continue.
            sampling: how to choose tokens.
            max_tokens: the maximum number of tokens to generate.
            n_ctx: the context, for prompt and completion together; 0 for the model's own, up to 4096.
            threads: the number of threads; 0 for one per core.

        Raises:
            UsageError: the prompt is empty or does not fit, or a number is out of range.
            GGUFError, NativeLibraryError: the model cannot be loaded.
        """
        if max_tokens < 1:
            raise UsageError(f"max tokens is {max_tokens}; expected 1 or more")
        start = time.perf_counter()
        threads = threads or default_threads()
        check_text("the prompt", prompt)
        check_threads(threads)
        context = checked_context(path, n_ctx)
        self._llama = load(path, n_ctx=context, n_threads=threads, n_threads_batch=threads)
        self.load_seconds = time.perf_counter() - start
        self._api = bind().llama_cpp
        self._vocab = self._api.llama_model_get_vocab(self._llama.model)
        self._prompt = self._llama.tokenize(prompt.encode("utf-8"), special=True)
        self.prompt_tokens = len(self._prompt)
        self.tokens = 0
        self.seconds = 0.0
        self.finish_reason: str | None = None
        room = self._llama.n_ctx() - self.prompt_tokens
        if self.prompt_tokens == 0:
            raise UsageError("the prompt has no tokens; give a non-empty text")
        if room < 1:
            raise UsageError(
                f"the prompt has {self.prompt_tokens} tokens, but the context only {self._llama.n_ctx()}; "
                "shorten the prompt or set a larger --ctx"
            )
        self.max_tokens = min(max_tokens, room)
        self._sampling = sampling

    def __iter__(self) -> Iterator[str]:
        start = time.perf_counter()
        # a token may be a part of a character; bytes that never become one are dropped
        decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        try:
            for token in self._generated_tokens():
                text = decoder.decode(self._llama.detokenize([token], prev_tokens=self._prompt))
                if text:
                    yield text
        finally:
            self.seconds = time.perf_counter() - start
            self._llama.close()

    def _generated_tokens(self) -> Iterator[int]:
        """The tokens up to an end of text, which is not counted, or up to the limit."""
        self._llama.set_seed(self._sampling.seed)
        generated = self._llama.generate(
            self._prompt,
            temp=self._sampling.temperature,
            top_k=self._sampling.top_k,
            top_p=self._sampling.top_p,
            min_p=0.0,
            repeat_penalty=1.0,
        )
        for token in generated:
            if self._api.llama_vocab_is_eog(self._vocab, token):
                self.finish_reason = "stop"
                return
            self.tokens += 1
            if self.tokens == self.max_tokens:
                self.finish_reason = "length"
            yield token
            if self.finish_reason:
                return
