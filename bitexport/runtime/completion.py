"""Generates text: the function behind ``bitexport run``."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bitexport.errors import UsageError
from bitexport.runtime.drafts import DEFAULT_DRAFT_TOKENS, DraftSource, DraftStatistics, check_draft_tokens
from bitexport.runtime.facts import facts_of
from bitexport.runtime.generation import ChosenToken, Generation
from bitexport.runtime.limits import check_text, check_threads, context_within, warn_beyond
from bitexport.runtime.sampling import DEFAULT_SAMPLING, Sampling
from bitexport.runtime.text_model import TextModel
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
        seconds: the time from the start of the iteration to its end.
        drafts: what drafts did.
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
        draft: str | os.PathLike[str] | None = None,
        draft_tokens: int = DEFAULT_DRAFT_TOKENS,
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
            draft: ``"lookup"`` to draft from what stands in the text already, or the file of a smaller model
                with the same tokens; the text stays as it is without drafts, and comes faster where they are
                right.
            draft_tokens: the most drafted tokens of a pass, 1 to 31; as many are drafted as seem worth it.

        Raises:
            UsageError: the prompt is empty or does not fit, a number is out of range, the grammar has a
                mistake, the file is for embeddings, or the draft model has other tokens.
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
        check_draft_tokens(draft_tokens)
        self._llama: Any
        self._drafts: DraftSource | None = None
        if draft is None:
            self._llama = _open(path, n_ctx, threads, workers, layers)
        else:
            self._llama, self._drafts = _open_with_drafts(path, n_ctx, threads, draft, draft_tokens, workers)
        self.load_seconds = time.perf_counter() - start
        placement = self._llama.placement
        self.layers: tuple[int, ...] = () if placement is None else placement.layers
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
        self._generation = Generation(
            self._llama,
            tokens,
            sampling=sampling,
            max_tokens=self.max_tokens,
            stop=stop,
            alternatives=logprobs,
            drafts=self._drafts,
            draft_tokens=draft_tokens,
        )

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
    def drafts(self) -> DraftStatistics:
        return self._generation.drafts

    @property
    def seconds(self) -> float:
        return self._generation.seconds

    def __iter__(self) -> Iterator[str]:
        try:
            yield from self._generation
        finally:
            if self._drafts is not None:
                self._drafts.close()
            self._llama.close()


def _open(
    path: str | os.PathLike[str],
    n_ctx: int,
    threads: int,
    workers: str | Sequence[str],
    layers: Sequence[int],
) -> TextModel:
    if layers and not workers:
        raise UsageError("layers says how to divide a model among workers, and there are none; give workers")
    if workers:
        return _open_with_workers(path, n_ctx, threads, workers, layers)
    facts = facts_of(path)
    context = context_within(facts.context_length, n_ctx)
    warn_beyond(facts.context_length, n_ctx)
    return TextModel(Path(path), facts.overrides, n_ctx=context, n_threads=threads)


def _open_with_drafts(
    path: str | os.PathLike[str],
    n_ctx: int,
    threads: int,
    draft: str | os.PathLike[str],
    draft_tokens: int,
    workers: str | Sequence[str],
) -> tuple[Any, DraftSource | None]:
    from bitexport.runtime.drafts.opening import check_drafts, open_drafts
    from bitexport.runtime.loading import load

    check_drafts(path, draft, draft_tokens, workers)
    facts = facts_of(path)
    context = context_within(facts.context_length, n_ctx)
    warn_beyond(facts.context_length, n_ctx)
    model = load(path, n_ctx=context, n_threads=threads, n_threads_batch=threads)
    return model, open_drafts(model, draft, threads=threads)


def _open_with_workers(
    path: str | os.PathLike[str],
    n_ctx: int,
    threads: int,
    workers: str | Sequence[str],
    layers: Sequence[int],
) -> TextModel:
    from bitexport.runtime.loading import can_try
    from bitexport.runtime.remote import Workers

    connected = Workers(workers)
    try:
        facts = facts_of(path, trial=can_try(path))
        context = context_within(facts.context_length, n_ctx)
        warn_beyond(facts.context_length, n_ctx)
        return TextModel(
            Path(path),
            facts.overrides,
            n_ctx=context,
            n_threads=threads,
            workers=connected,
            placement=connected.place(Path(path), layers, context),
        )
    except BaseException:
        connected.close()
        raise
