"""The loop of block decoding, over anything that evaluates a block.

Blocks begin at multiples of their size, so a prompt fills some blocks and usually begins another. A full
block is evaluated once, with attention in both directions inside it, and stays in the cache. The block in
progress has the tokens that are known and mask tokens elsewhere, up to the end of the block or of the
context. It is evaluated and forgotten again, pass by pass; each pass settles some tokens by a rule, until all
are known. Then the block is evaluated once more, to stay in the cache. This pass also predicts the first
token of the next block, since the logits of a position predict the token after it (``token_shift``).

An end of text is settled only where all tokens in front of it are settled. So no pass is spent on ends that
repeat until the end of the block.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bitexport.blocks.choice import TokenChoice, confidence
from bitexport.blocks.rules import DEFAULT_RULE, BlockRule
from bitexport.checkpoint.block_diffusion import BlockDiffusion


class Evaluator(Protocol):
    """A model that evaluates a block after a cache of tokens."""

    def evaluate(self, ids: Sequence[int], rows: Sequence[int], *, keep: bool) -> npt.NDArray[np.float32]:
        """Evaluate ``ids`` behind the cache; each attends to the cache and to all of ``ids``.

        Args:
            ids: T tokens.
            rows: the positions whose logits are returned, in order: at least one of 0 to T - 1.
            keep: whether ``ids`` become a part of the cache.

        Returns:
            float32, shape ``[len(rows), V]``; the caller may change it.
        """
        ...


class BlockDecoding:
    """Continues a prompt block by block: iterate over it to get the tokens in order, as they are settled.

    Args:
        model: with an empty cache.
        prompt: at least one token.
        settings: of the model.
        rule: which tokens to settle in a pass.
        choose: how to choose them; the most likely by default.
        ends: tokens that end the text.
        max_tokens: the most tokens of the text. A longer text begins with the same tokens.
        n_ctx: the context in tokens; a prompt that fills it gets no text.

    Attributes:
        ids: the tokens, without one that ended the text.
        finish_reason: ``"stop"`` at an end, ``"length"`` at the limit or the end of the context.
        prompt_passes: evaluations of full blocks of the prompt.
        passes: all others.
    """

    def __init__(
        self,
        model: Evaluator,
        prompt: Sequence[int],
        settings: BlockDiffusion,
        *,
        rule: BlockRule = DEFAULT_RULE,
        choose: TokenChoice | None = None,
        ends: Collection[int] = (),
        max_tokens: int,
        n_ctx: int,
    ) -> None:
        self._model = model
        self._prompt = list(prompt)
        self._settings = settings
        self._rule = rule
        self._choose = choose or TokenChoice()
        self._ends = frozenset(ends)
        self._limit = min(len(prompt) + max_tokens, n_ctx)  # the position at which to stop
        self._n_ctx = n_ctx
        self.ids: list[int] = []
        self.finish_reason: str | None = None
        self.prompt_passes = 0
        self.passes = 0

    def __iter__(self) -> Iterator[int]:
        if len(self._prompt) >= self._limit:
            self.finish_reason = "length"
            return
        size = self._settings.block_size
        begin = len(self._prompt) // size * size
        following: npt.NDArray[np.float32] | None = None  # logits for the first token of the next block
        for start in range(0, begin, size):
            following = self._model.evaluate(self._prompt[start : start + size], [size - 1], keep=True)[0]
            self.prompt_passes += 1
        known = self._prompt[begin:]
        while True:
            block = _Block(min(size, self._n_ctx - begin), known)
            if not known and following is not None and self._settings.token_shift:
                block.settle(0, self._choose(self._without_mask(following)))
            yield from self._fill(block)
            if self.finish_reason is not None:
                return
            following = self._model.evaluate(block.ids(), [size - 1], keep=True)[0]
            self.passes += 1
            begin += size
            known = []

    def _fill(self, block: _Block) -> Iterator[int]:
        """Settle a block's tokens; yields those in front of which all are settled."""
        step = 0
        while True:
            for token in block.new_tokens():
                if token in self._ends:
                    self.finish_reason = "stop"
                    return
                self.ids.append(token)
                yield token
                if len(self._prompt) + len(self.ids) == self._limit:
                    self.finish_reason = "length"
                    return
            open_positions = block.open_positions()
            if not open_positions:
                return
            self._settle_some(block, open_positions, step)
            step += 1

    def _settle_some(self, block: _Block, positions: list[int], step: int) -> None:
        shift = 1 if self._settings.token_shift else 0
        rows = [position - shift for position in positions]
        masked = block.ids(self._settings.mask_token_id)
        logits = self._without_mask(self._model.evaluate(masked, rows, keep=False))
        self.passes += 1
        likely, sure = confidence(logits)
        settled = 0
        for index in self._chosen(block, positions, likely, sure, step):
            token = int(likely[index]) if self._choose.most_likely else self._choose(logits[index])
            is_end = token in self._ends
            if is_end and positions[index] != block.first_open():
                continue
            block.settle(positions[index], token)
            settled += 1
            if is_end:
                return
        if not settled:  # only ends were drawn, at a high temperature
            block.settle(positions[0], self._choose(logits[0]))

    def _chosen(
        self,
        block: _Block,
        positions: list[int],
        likely: npt.NDArray[np.intp],
        sure: npt.NDArray[np.float64],
        step: int,
    ) -> list[int]:
        """The rows whose positions the rule settles, in order."""
        after_settled = np.array([block.is_settled(position - 1) for position in positions])
        chosen = self._rule.above(sure, after_settled, step)
        best = 0  # nothing in front of the first is unknown, so it may be an end
        for index, (token, value) in enumerate(zip(likely.tolist(), sure.tolist(), strict=True)):
            if value > sure[best] and token not in self._ends:
                best = index
        chosen[best] = True
        return np.flatnonzero(chosen).tolist()

    def _without_mask(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """``logits``, in which the mask token becomes impossible: it is not a part of any text."""
        logits[..., self._settings.mask_token_id] = -np.inf
        return logits


class _Block:
    """The block in progress.

    Args:
        size: fewer than a block's tokens only at the end of the context.
        known: the tokens of the prompt in it.
    """

    def __init__(self, size: int, known: Sequence[int]) -> None:
        self._tokens: list[int | None] = [*known, *[None] * (size - len(known))]
        self._yielded = len(known)

    def settle(self, position: int, token: int) -> None:
        self._tokens[position] = token

    def is_settled(self, position: int) -> bool:
        """Whether the token at ``position`` is known; true in front of the block."""
        return position < 0 or self._tokens[position] is not None

    def ids(self, mask: int = -1) -> list[int]:
        """The tokens, with ``mask`` where one is unknown."""
        return [mask if token is None else token for token in self._tokens]

    def new_tokens(self) -> Iterator[int]:
        """Tokens that were not returned before and that have only settled ones in front of them."""
        while self._yielded < len(self._tokens):
            token = self._tokens[self._yielded]
            if token is None:
                return
            self._yielded += 1
            yield token

    def open_positions(self) -> list[int]:
        """The unknown positions, in order."""
        return [position for position, token in enumerate(self._tokens) if token is None]

    def first_open(self) -> int:
        """The first unknown position; the size of the block if all are known."""
        return next((at for at, token in enumerate(self._tokens) if token is None), len(self._tokens))
