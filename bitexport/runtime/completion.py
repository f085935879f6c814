"""Generates text: the function behind ``bitexport run``."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence

from bitexport.blocks.rules import DEFAULT_RULE, BlockRule
from bitexport.errors import UsageError
from bitexport.gguf.embedding_settings import check_generates
from bitexport.gguf.reader import read_gguf
from bitexport.runtime.block_generation import BlockGeneration, decodes_blocks
from bitexport.runtime.generation import ChosenToken, Generation
from bitexport.runtime.limits import check_text, check_threads, checked_context, warn_of_long_context
from bitexport.runtime.loading import load
from bitexport.runtime.sampling import DEFAULT_SAMPLING, Sampling
from bitexport.runtime.threads import default_threads

__all__ = ["Completion", "Sampling"]


class Completion:
    """The continuation of a prompt: iterate over it to get the text in pieces.

    The attributes are final when the iteration has ended.

    Attributes:
        prompt_tokens: the number of tokens of the prompt.
        tokens: the number of generated tokens.
        finish_reason: ``"stop"`` at an end-of-text token or a stop text, ``"length"`` at the limit; None
            before.
        probabilities: for each token its probability and the most likely ones, if ``logprobs`` was given.
        max_tokens: the limit: as requested, or fewer if the context ends before.
        load_seconds: the time to load the model.
        layers: that this machine and each worker compute; empty without workers.
        passes: the evaluations of a block, if the text is decoded in blocks; otherwise None.
        seconds: the time from the start of the iteration to its end.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        prompt: str,
        *,
        sampling: Sampling = DEFAULT_SAMPLING,
        max_tokens: int = 256,
        n_ctx: int = 0,
        threads: int = 0,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        workers: str | Sequence[str] = (),
        layers: Sequence[int] = (),
        decode: str = "auto",
        rule: BlockRule | None = None,
    ) -> None:
        """Load the model and check that the prompt fits.

        Args:
            path: the GGUF file.
            prompt: the text to continue.
            sampling: how to choose tokens.
            max_tokens: the maximum number of tokens to generate.
            n_ctx: the context, for prompt and completion together; 0 for the model's own, up to 4096.
            threads: the number of threads; 0 for one per core.
            stop: texts before which the completion ends.
            logprobs: keep the probability of every token, and of this many most likely ones in its place:
                the model's own, before any sampling option.
            workers, layers: see :func:`bitexport.load`.
            decode: ``plain`` or ``block``; ``auto`` for what the file is made for.
            rule: which tokens of a block are settled in a pass; None for the default.

        Raises:
            UsageError: the prompt is empty or does not fit, a number is out of range, the grammar has a
                mistake, the file is for embeddings, or it or an option does not suit ``decode``.
            GGUFError, NativeLibraryError: the model cannot be loaded.
            WorkerError: a worker cannot be used. Also raised while iterating, when one is lost.
        """
        if max_tokens < 1:
            raise UsageError(f"max tokens is {max_tokens}; expected 1 or more")
        start = time.perf_counter()
        threads = threads or default_threads()
        check_text("the prompt", prompt)
        for text in stop:
            check_text("a stop text", text)
        check_text("the grammar", sampling.grammar)
        check_threads(threads)
        check_generates(read_gguf(os.fspath(path)))
        context = checked_context(path, n_ctx)
        warn_of_long_context(path, n_ctx)
        self._blocks: BlockGeneration | None = None
        self.layers: tuple[int, ...]
        if decodes_blocks(path, decode):
            if logprobs is not None:
                raise UsageError("log-probabilities are of text in order; use --decode plain with --logprobs")
            self._blocks = BlockGeneration(
                path,
                prompt,
                sampling=sampling,
                rule=rule or DEFAULT_RULE,
                max_tokens=max_tokens,
                stop=stop,
                n_ctx=context,
                n_threads=threads,
                workers=workers,
                layers=layers,
            )
            self.load_seconds = time.perf_counter() - start
            self.layers = self._blocks.layers
            self.prompt_tokens = len(self._blocks.prompt)
            self.max_tokens = self._blocks.max_tokens
            return
        if rule is not None:
            raise UsageError(
                f"the rule {rule.name} settles tokens of blocks, and {path} is decoded token by token; leave "
                "--rule and --threshold out"
            )
        self._llama = load(
            path, n_ctx=context, n_threads=threads, n_threads_batch=threads, workers=workers, layers=layers
        )
        self.load_seconds = time.perf_counter() - start
        placement = self._llama.placement
        self.layers = () if placement is None else placement.layers
        tokens = self._llama.tokenize(prompt.encode("utf-8"), special=True)
        self.prompt_tokens = len(tokens)
        room = self._llama.n_ctx() - self.prompt_tokens
        if self.prompt_tokens == 0:
            raise UsageError("the prompt has no tokens; give a non-empty text")
        if room < 1:
            raise UsageError(
                f"the prompt has {self.prompt_tokens} tokens, but the context only {self._llama.n_ctx()}; "
                "shorten the prompt or set a larger --ctx"
            )
        self.max_tokens = min(max_tokens, room)
        self._plain = Generation(
            self._llama,
            tokens,
            sampling=sampling,
            max_tokens=self.max_tokens,
            stop=stop,
            alternatives=logprobs,
        )

    @property
    def _generation(self) -> Generation | BlockGeneration:
        return self._plain if self._blocks is None else self._blocks

    @property
    def passes(self) -> int | None:
        return None if self._blocks is None else self._blocks.passes

    @property
    def tokens(self) -> int:
        return len(self._generation.ids)

    @property
    def finish_reason(self) -> str | None:
        return self._generation.finish_reason

    @property
    def probabilities(self) -> list[ChosenToken]:
        return self._generation.probabilities

    @property
    def seconds(self) -> float:
        return self._generation.seconds

    def __iter__(self) -> Iterator[str]:
        try:
            yield from self._generation
        finally:
            if self._blocks is None:
                self._llama.close()
            else:
                self._blocks.close()
