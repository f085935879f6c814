"""Evaluates drafted tokens together with the text, in one pass, and keeps what is right.

The text's own sampler chooses a token after each position of the pass, as without drafts, and the pass goes
on as long as it chooses what was drafted. So a draft decides about time and never about the text: the tokens,
the state of penalties and grammar and the random numbers are those of decoding one by one. In terms of
speculative sampling (Leviathan et al., arXiv:2211.17192): a draft that is one certain token x, with q(x) = 1,
is accepted with probability min(1, p(x) / q(x)) = p(x); otherwise p without x is what is left to choose from.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from bitexport.errors import BitexportWarning
from bitexport.runtime.library import api
from bitexport.runtime.sampling import Sampler

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from bitexport.runtime.drafts.pace import Pace


# Of the passes without a draft that follow one another, one in so many is timed, because it takes time.
_TIMED_EVERY = 8


class DraftSource(Protocol):
    """Where drafts come from.

    Attributes:
        name: ``"lookup"``, or the draft model's file.
        pace: how many tokens are worth it.
    """

    name: str
    pace: Pace

    def begin(self, ids: Sequence[int]) -> None:
        """Start a text with these tokens."""

    def follow(self, token: int) -> None:
        """Continue the text."""

    def propose(self, most: int, sampler: Sampler) -> tuple[list[int], list[int]]:
        """At most so many tokens that may come next, and the level of trust in each."""

    def close(self) -> None:
        """Free what it holds."""


@dataclass(slots=True)
class DraftStatistics:
    """What drafts did for a text.

    Attributes:
        passes: evaluations, that of the prompt included; each gives at least one token.
        drafted: tokens that were evaluated as drafts.
        accepted: those that the text has.
        exact: whether passes compute, to the last bit, what single tokens compute, so that the text is that
            of decoding without drafts; None if it was not seen, because no draft was accepted yet.
    """

    passes: int = 0
    drafted: int = 0
    accepted: int = 0
    exact: bool | None = None


class Passes:
    """The evaluations of one text, with drafts if there is a source of them.

    Args:
        llama: the model.
        source: of the drafts; None to evaluate token by token.
        most: the most drafted tokens of a pass.
    """

    def __init__(self, llama: Any, source: DraftSource | None = None, most: int = 0) -> None:
        self._llama = llama
        self._api = api()
        self._source = source
        self._most = most
        self._n_ctx = llama.n_ctx()
        self.statistics = DraftStatistics(exact=getattr(llama, "drafts_are_exact", None))
        self._following: list[int] = []  # tokens of the text that are not evaluated yet
        self._draft: list[int] = []
        self._trusts: list[int] = []
        self._right = 0  # of the draft
        self._seconds = 0.0
        self._plain = 0  # passes without a draft, one after the other
        self._rows: list[npt.NDArray[np.float32]] = []  # logits of the pass, to check that they are exact

    def begin(self, prompt: Sequence[int], following: Sequence[int]) -> None:
        """Start with a prompt, of which ``following`` is not evaluated yet."""
        self._following = list(following)
        if self._source is not None:
            self._source.begin(prompt)

    @property
    def place(self) -> int:
        """The position after which the next token is to be chosen, from the pass's end: -1 is the last."""
        return self._right - len(self._draft) - 1

    def evaluate(self, sampler: Sampler, room: int) -> None:
        """Evaluate what follows, and a draft.

        Args:
            sampler: will choose the next token.
            room: the most drafted tokens that the text has room for.
        """
        self._draft, self._trusts, self._right = [], [], 0
        # the first pass is the prompt's
        if self._source is not None and self.statistics.passes:
            count = len(self._following)
            most = min(room, self._n_ctx - self._llama.n_tokens - count, self._most - count + 1)
            if most > 0:
                self._draft, self._trusts = self._source.propose(most, sampler)
        start = time.perf_counter()
        if self._draft:
            self._llama.eval_every_position([*self._following, *self._draft])
        else:
            self._llama.eval(self._following)
        self._seconds = time.perf_counter() - start
        self.statistics.passes += 1
        self.statistics.drafted += len(self._draft)
        if self._draft and self.statistics.exact is None and len(self._following) == 1:
            self._rows = [self._logits(place).copy() for place in (self.place, self.place + 1)]

    def take(self, token: int) -> bool:
        """Continue the text with a token; returns whether the one after it can be chosen at once."""
        if self._source is None:
            self._following = [token]
            return False
        self._source.follow(token)
        if self._right < len(self._draft) and token == self._draft[self._right]:
            self._right += 1
            self.statistics.accepted += 1
            return True
        self._end_pass(token)
        return False

    def _end_pass(self, token: int) -> None:
        assert self._source is not None
        if not self._draft:
            self._plain += 1
            if self._plain % _TIMED_EVERY and self._plain > _TIMED_EVERY:
                self._following = [token]
                return
        timed = len(self._following) == 1 and self.statistics.passes > 1
        size = 1 + len(self._draft)
        passes = _TIMED_EVERY if self._plain > _TIMED_EVERY and not self._draft else 1
        self._source.pace.add_pass(size if timed else 0, self._seconds, self._trusts, self._right, passes)
        if self._draft:
            self._llama.n_tokens -= len(self._draft) - self._right  # the next evaluation removes the others
            self._plain = 0
        evaluated, self._following = self._following, [token]
        if self._rows and self._right:
            self._following = [*self._check(evaluated[0]), token]
        self._rows = []

    def _check(self, first: int) -> list[int]:
        """Evaluate the pass's first two tokens again, one by one; returns the accepted ones after them."""
        accepted = self._draft[: self._right]
        self._llama.n_tokens -= 1 + self._right
        same = True
        for token, row in zip((first, accepted[0]), self._rows, strict=True):
            self._llama.eval([token])
            same = same and self._logits(-1).tobytes() == row.tobytes()
        self.statistics.exact = self._llama.drafts_are_exact = same
        if not same:
            warnings.warn(
                f"{self._llama.model_path}: for some of its matrices, llama.cpp rounds differently when it "
                "evaluates several tokens at once, so with drafts the text may differ where two tokens are "
                "almost equally likely; convert with --embed-type q6_k, or do without drafts",
                BitexportWarning,
                stacklevel=2,
            )
        return accepted[1:]

    def _logits(self, place: int) -> npt.NDArray[np.float32]:
        import numpy as np  # slow to import, and without drafts not needed

        pointer = self._api.llama_get_logits_ith(self._llama.ctx, place)
        return np.ctypeslib.as_array(pointer, shape=(self._llama.n_vocab(),))
