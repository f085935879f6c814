"""Generates text: the function behind ``bitexport run``."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitexport.errors import UsageError
from bitexport.runtime.drafts import DEFAULT_DRAFT_TOKENS, DraftSource, DraftStatistics, check_draft_tokens
from bitexport.runtime.facts import Facts, facts_of
from bitexport.runtime.generation import ChosenToken, Generation
from bitexport.runtime.limits import (
    check_text,
    check_threads,
    context_within,
    room_behind,
    warn_beyond,
    warn_of_plain_decoding,
)
from bitexport.runtime.sampling import DEFAULT_SAMPLING, Sampling
from bitexport.runtime.text_model import TextModel
from bitexport.runtime.threads import default_threads

if TYPE_CHECKING:
    from bitexport.blocks import BlockRule
    from bitexport.runtime.block_generation import BlockGeneration

__all__ = ["Completion", "Sampling"]

DECODINGS = ("auto", "plain", "block")


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
            draft: ``"lookup"`` to draft from what stands in the text already, or the file of a smaller model
                with the same tokens; the text stays as it is without drafts, and comes faster where they are
                right. Not for blocks.
            draft_tokens: the most drafted tokens of a pass, 1 to 31; as many are drafted as seem worth it.
            decode: ``plain`` or ``block``; ``auto`` for what the file is made for.
            rule: which tokens of a block are settled in a pass; None for the default.

        Raises:
            UsageError: the prompt is empty or does not fit, a number is out of range, the grammar has a
                mistake, the file is for embeddings, the draft model has other tokens, or the file or an
                option does not suit ``decode``.
            GGUFError, NativeLibraryError: the model cannot be loaded.
            WorkerError: a worker cannot be used. Also raised while iterating, when one is lost.
        """
        start = time.perf_counter()
        threads = threads or default_threads()
        check_threads(threads)
        check_draft_tokens(draft_tokens)
        _check_options(max_tokens, decode)
        _check_texts(prompt, stop, sampling)
        self.layers: tuple[int, ...] = ()
        self._drafts: DraftSource | None = None
        self._blocks: BlockGeneration | None = None
        if draft is not None and decode != "block":
            _check_drafts(path, draft, draft_tokens, workers)
        facts = _facts(path, workers, layers)
        context = context_within(facts.context_length, n_ctx)
        warn_beyond(facts.context_length, n_ctx)
        if decode == "block" or (decode == "auto" and facts.block_size):
            _check_suits_blocks(draft, logprobs)
            session = {"n_ctx": context, "n_threads": threads, "workers": workers, "layers": layers}
            limits = {"max_tokens": max_tokens, "stop": stop}
            self._blocks = _open_blocks(path, prompt, sampling=sampling, rule=rule, **limits, **session)
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
        self._llama: Any
        if draft is None:
            self._llama = _open(path, facts, context, threads, workers, layers)
        else:
            self._llama, self._drafts = _open_with_drafts(path, context, threads, draft)
        self.load_seconds = time.perf_counter() - start
        placement = self._llama.placement
        self.layers = () if placement is None else placement.layers
        tokens = self._llama.tokenize(prompt.encode("utf-8"), special=True)
        self.prompt_tokens = len(tokens)
        self.max_tokens = min(max_tokens, room_behind(self.prompt_tokens, self._llama.n_ctx()))
        self._plain = Generation(
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
    def drafts(self) -> DraftStatistics:
        return DraftStatistics() if self._blocks is not None else self._plain.drafts

    @property
    def seconds(self) -> float:
        return self._generation.seconds

    def __iter__(self) -> Iterator[str]:
        try:
            yield from self._generation
        finally:
            if self._drafts is not None:
                self._drafts.close()
            (self._llama if self._blocks is None else self._blocks).close()


def _check_options(max_tokens: int, decode: str) -> None:
    if max_tokens < 1:
        raise UsageError(f"max tokens is {max_tokens}; expected 1 or more")
    check_decode(decode)


def check_decode(decode: str) -> None:
    """Raise UsageError unless ``decode`` is one of :data:`DECODINGS`."""
    if decode not in DECODINGS:
        raise UsageError(f"decode is {decode!r}; expected one of {', '.join(DECODINGS)}")


def _check_texts(prompt: str, stop: Sequence[str], sampling: Sampling) -> None:
    check_text("the prompt", prompt)
    for text in stop:
        check_text("a stop text", text)
    check_text("the grammar", sampling.grammar)


def _facts(path: str | os.PathLike[str], workers: str | Sequence[str], layers: Sequence[int]) -> Facts:
    if layers and not workers:
        raise UsageError("layers says how to divide a model among workers, and there are none; give workers")
    if not workers:
        return facts_of(path, warn=False)
    from bitexport.runtime.loading import can_try

    return facts_of(path, trial=can_try(path), warn=False)


def _check_drafts(
    path: str | os.PathLike[str],
    draft: str | os.PathLike[str],
    draft_tokens: int,
    workers: str | Sequence[str],
) -> None:
    from bitexport.runtime.drafts.opening import check_drafts

    check_drafts(path, draft, draft_tokens, workers)


def _check_suits_blocks(draft: str | os.PathLike[str] | None, logprobs: int | None) -> None:
    if draft is not None:
        raise UsageError("drafts continue a text in order; leave --draft out, or use --decode plain")
    if logprobs is not None:
        raise UsageError("log-probabilities are of text in order; use --decode plain with --logprobs")


def _open_blocks(
    path: str | os.PathLike[str], prompt: str, *, rule: BlockRule | None, **options: Any
) -> BlockGeneration:
    from bitexport.blocks.rules import DEFAULT_RULE
    from bitexport.runtime.block_generation import BlockGeneration

    return BlockGeneration(path, prompt, rule=rule or DEFAULT_RULE, **options)


def _open(
    path: str | os.PathLike[str],
    facts: Facts,
    context: int,
    threads: int,
    workers: str | Sequence[str],
    layers: Sequence[int],
) -> TextModel:
    facts.warn()
    if facts.block_size:
        warn_of_plain_decoding(path)
    if not workers:
        return TextModel(Path(path), facts.overrides, n_ctx=context, n_threads=threads)
    from bitexport.runtime.remote import Workers

    connected = Workers(workers)
    try:
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


def _open_with_drafts(
    path: str | os.PathLike[str], context: int, threads: int, draft: str | os.PathLike[str]
) -> tuple[Any, DraftSource | None]:
    from bitexport.runtime.drafts.opening import open_drafts
    from bitexport.runtime.loading import load

    model = load(path, n_ctx=context, n_threads=threads, n_threads_batch=threads)
    return model, open_drafts(model, draft, threads=threads)
