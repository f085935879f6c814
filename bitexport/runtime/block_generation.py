"""Continues a text in blocks, with a model of block diffusion."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from bitexport.blocks import BlockDecoding, BlockRule
from bitexport.blocks.rules import DEFAULT_RULE
from bitexport.errors import UsageError
from bitexport.runtime.block_checks import check_blocks, token_choice
from bitexport.runtime.block_session import BlockSession
from bitexport.runtime.generation import ChosenToken, StopTexts
from bitexport.runtime.limits import room_behind
from bitexport.runtime.sampling import DEFAULT_SAMPLING, Sampling


class BlockGeneration:
    """A continuation: iterate over it to get the text in pieces of whole characters, as tokens are settled.

    Args:
        path: the GGUF file.
        prompt: the text to continue.
        sampling: how to choose tokens; without a grammar or a repeat penalty, which need the text in order.
        rule: which tokens to settle in a pass.
        max_tokens: the most tokens to generate; fewer if the context ends before.
        stop: texts before which the text ends.
        session: arguments of :class:`~bitexport.runtime.block_session.BlockSession`.

    Attributes:
        prompt: the tokens before the text.
        ids: the generated tokens, without one that ended the text.
        text: the text so far.
        finish_reason: ``"stop"`` at an end token or stop text, ``"length"`` at the limit; None before.
        max_tokens: the limit: as requested, or fewer if the context ends before.
        seconds: the time from the start of the iteration to its end.
        probabilities: always empty.

    Raises:
        UsageError: the file is a plain model, the prompt is empty or does not fit, or an option needs the
            text in order.
        GGUFError, NativeLibraryError, WorkerError: see :class:`~bitexport.runtime.session.Session`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        prompt: str,
        *,
        sampling: Sampling = DEFAULT_SAMPLING,
        rule: BlockRule = DEFAULT_RULE,
        max_tokens: int,
        stop: Sequence[str] = (),
        **session: Any,
    ) -> None:
        if any(not text for text in stop):
            raise UsageError("a stop text is empty; give at least one character")
        check_blocks(path, sampling, instead="--decode plain")
        self._session = BlockSession(path, exact=False, **session)
        try:
            self.prompt = self._session.tokenize(prompt)
            room = room_behind(len(self.prompt), self._session.n_ctx)
        except BaseException:
            self._session.close()
            raise
        self.max_tokens = min(max_tokens, room)
        self._decoding = BlockDecoding(
            self._session,
            self.prompt,
            self._session.diffusion,
            rule=rule,
            choose=token_choice(sampling),
            ends=self._session.end_tokens(),
            max_tokens=self.max_tokens,
            n_ctx=self._session.n_ctx,
        )
        self._stop = StopTexts(stop)
        self.text = ""
        self.finish_reason: str | None = None
        self.seconds = 0.0
        self.probabilities: list[ChosenToken] = []

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that this machine and each worker compute; empty without workers."""
        placement = self._session.placement
        return () if placement is None else placement.layers

    @property
    def ids(self) -> list[int]:
        return self._decoding.ids

    @property
    def passes(self) -> int:
        """The evaluations of a block, without those of the prompt's full blocks."""
        return self._decoding.passes

    def __iter__(self) -> Generator[str, None, None]:
        start = time.perf_counter()
        try:
            for text in self._pieces():
                self.text += text
                yield text
            self.finish_reason = self.finish_reason or self._decoding.finish_reason
        finally:
            self.seconds = time.perf_counter() - start

    def _pieces(self) -> Iterator[str]:
        yield from self._stop.cut(self._session.piece(token, special=False) for token in self._decoding)
        if self._stop.found:
            self.finish_reason = "stop"

    def close(self) -> None:
        """Free the model. Closing twice does nothing."""
        self._session.close()
