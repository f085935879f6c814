"""Continues tokens on an open model, in pieces of text: what ``run`` and ``chat`` share."""

from __future__ import annotations

import codecs
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitexport.errors import UsageError
from bitexport.runtime.drafts import DEFAULT_DRAFT_TOKENS, DraftSource, DraftStatistics, Passes
from bitexport.runtime.library import api
from bitexport.runtime.pieces import piece
from bitexport.runtime.sampling import Sampler, Sampling

if TYPE_CHECKING:
    from llama_cpp import Llama

#: The most alternatives to a token whose probabilities are kept.
MAX_ALTERNATIVES = 100


@dataclass(frozen=True, slots=True)
class TokenProbability:
    """A token and the natural logarithm of its probability under the model, before any sampling option."""

    token: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class ChosenToken:
    """A token of the text, and the most likely ones in its place, the most likely first."""

    chosen: TokenProbability
    alternatives: tuple[TokenProbability, ...]


class StopTexts:
    """Cuts a text that comes in pieces before the first of some texts.

    Args:
        texts: the text ends before any of these.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = tuple(texts)
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """Take the next piece; returns what is certain not to be part of a stop text."""
        self._held += text
        at = min((at for stop in self._texts if (at := self._held.find(stop)) >= 0), default=-1)
        if at >= 0:
            self.found = True
            free, self._held = self._held[:at], ""
            return free
        kept = max((_overlap(self._held, stop) for stop in self._texts), default=0)
        free = self._held[: len(self._held) - kept]
        self._held = self._held[len(self._held) - kept :]
        return free

    def rest(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def cut(self, pieces: Iterable[bytes]) -> Iterator[str]:
        """The text of the tokens of these pieces, in whole characters, up to a stop text."""
        # a token may be a part of a character; bytes that never become one are dropped
        decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        for each in pieces:
            if text := self.add(decoder.decode(each)):
                yield text
            if self.found:
                return
        if rest := self.rest():
            yield rest


def _overlap(text: str, stop: str) -> int:
    """The length of the longest beginning of ``stop`` that ``text`` ends with."""
    return next(
        (size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0
    )


class Generation:
    """A continuation: iterate over it to get the text in pieces of whole characters.

    Tokens at the beginning that the model has already evaluated are not evaluated again. If the iteration is
    left early, the model can be used for the next generation.

    Args:
        llama: a model of :func:`bitexport.load`.
        prompt: the tokens to continue, at least one and fewer than the context.
        sampling: how to choose tokens.
        max_tokens: the most tokens to generate; fewer if the context ends before.
        stop: texts before which the text ends.
        ends: tokens at which it ends, besides those that the file calls an end of generation.
        alternatives: keep the probability of each token in ``probabilities``, and of this many most likely
            ones in its place; None to keep nothing.
        drafts: a source of drafts, which make a text that they foresee faster and leave it as it is; None to
            evaluate token by token.
        draft_tokens: the most drafted tokens of a pass.

    Attributes:
        prompt: the tokens before the text.
        ids: the generated tokens, without one that ended the text.
        text: the text so far.
        reused: prompt tokens that were not evaluated again.
        finish_reason: ``"stop"`` at an end token or stop text, ``"length"`` at the limit; None before.
        prompt_seconds: the time until the prompt was evaluated.
        seconds: the time from the start of the iteration to its end.

    Raises:
        UsageError: the grammar has a mistake, or a number or a stop text is invalid.
    """

    def __init__(
        self,
        llama: Llama,
        prompt: Sequence[int],
        *,
        sampling: Sampling,
        max_tokens: int,
        stop: Sequence[str] = (),
        ends: Sequence[int] = (),
        alternatives: int | None = None,
        drafts: DraftSource | None = None,
        draft_tokens: int = DEFAULT_DRAFT_TOKENS,
    ) -> None:
        if any(not text for text in stop):
            raise UsageError("a stop text is empty; give at least one character")
        if alternatives is not None and not 0 <= alternatives <= MAX_ALTERNATIVES:
            raise UsageError(f"{alternatives} alternatives per token; expected 0 to {MAX_ALTERNATIVES}")
        self._llama = llama
        self._api = api()
        self._vocab: Any = self._api.llama_model_get_vocab(llama.model)
        self.prompt = list(prompt)
        self._sampler = Sampler(self._vocab, sampling, self.prompt)
        self._max_tokens = max_tokens
        self._passes = Passes(llama, drafts, draft_tokens)
        self._stop = StopTexts(stop)
        self._ends = frozenset(ends)
        self._alternatives = alternatives
        self.probabilities: list[ChosenToken] = []
        self.ids: list[int] = []
        self.text = ""
        self.reused = 0
        self.finish_reason: str | None = None
        self.seconds = 0.0
        self.prompt_seconds = 0.0

    @property
    def drafts(self) -> DraftStatistics:
        """What drafts did for the text."""
        return self._passes.statistics

    def __iter__(self) -> Generator[str, None, None]:
        start = time.perf_counter()
        try:
            for text in self._pieces():
                self.text += text
                yield text
        finally:
            self.seconds = time.perf_counter() - start
            self._sampler.close()

    def _pieces(self) -> Iterator[str]:
        yield from self._stop.cut(
            self._llama.detokenize([token], prev_tokens=self.prompt) for token in self._tokens()
        )
        if self._stop.found:
            self.finish_reason = "stop"

    def _tokens(self) -> Iterator[int]:
        """The tokens up to an end of text, or up to the limit."""
        start = time.perf_counter()
        passes = self._passes
        passes.begin(self.prompt, self._keep_common_beginning())
        more = False  # whether the last pass has logits for the next token
        while True:
            if not more:
                passes.evaluate(self._sampler, self._max_tokens - len(self.ids) - 1)
                if not self.ids:
                    self.prompt_seconds = time.perf_counter() - start
            token = self._sampler.choose(self._llama.ctx, passes.place)
            if token in self._ends or self._api.llama_vocab_is_eog(self._vocab, token):
                self.finish_reason = "stop"
                return
            if self._alternatives is not None:
                self.probabilities.append(self._probability(token, self._alternatives))
            self.ids.append(token)
            if len(self.ids) == self._max_tokens:
                self.finish_reason = "length"
            more = passes.take(token)
            yield token
            if self.finish_reason:
                return

    def _keep_common_beginning(self) -> list[int]:
        """Forget what the model evaluated beyond the beginning of the prompt; returns the rest of the prompt.

        At least one token is left, whose evaluation gives the logits.
        """
        done = list(self._llama.input_ids[: self._llama.n_tokens])
        longest = min(len(done), len(self.prompt) - 1)
        self.reused = next((at for at in range(longest) if done[at] != self.prompt[at]), longest)
        memory = self._api.llama_get_memory(self._llama.ctx)
        if not self._api.llama_memory_seq_rm(memory, -1, self.reused, -1):
            self._llama.reset()  # a memory that cannot forget a part
            self.reused = 0
        self._llama.n_tokens = self.reused
        return self.prompt[self.reused :]

    def _probability(self, token: int, alternatives: int) -> ChosenToken:
        """From the logits that ``token`` was chosen from."""
        import numpy as np  # slow to import, and hardly ever needed

        count = self._llama.n_vocab()
        pointer = self._api.llama_get_logits_ith(self._llama.ctx, self._passes.place)
        logits = np.ctypeslib.as_array(pointer, shape=(count,))
        values = logits.astype(np.float64)
        values -= values.max()
        values -= np.log(np.exp(values).sum())
        order = np.argsort(-values, kind="stable")[:alternatives]
        return ChosenToken(
            self._named(token, values[token]), tuple(self._named(int(each), values[each]) for each in order)
        )

    def _named(self, token: int, logprob: float) -> TokenProbability:
        text = piece(self._vocab, token).decode("utf-8", errors="replace")
        return TokenProbability(token, text, float(logprob))
