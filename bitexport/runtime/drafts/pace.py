"""Decides how many drafted tokens a pass is worth, from how often drafts were right and what passes cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bitexport.runtime.drafts.limits import MAX_DRAFT_TOKENS

#: A pass over drafts has to promise this much more speed than a plain one.
_GAIN = 1.03

# A token that is right less often than this is not worth looking at.
_UNLIKELY = 0.02

# Before anything is measured, each token more in a pass adds this share of a plain pass's time.
_SLOPE, _SLOPE_WEIGHT = 0.1, 0.5

# How much of what was measured counts after another pass: the machine and the text change.
_COSTS_KEPT = 0.97
_RATES_KEPT = 0.997
_WEIGHED_EVERY = 16
# The same after another measurement of the same kind.
_RATE_KEPT = 0.95
_RATE_WEIGHT = 1.5


class PassCosts:
    """The time of a pass by its number of tokens, as a multiple of that of one token."""

    def __init__(self) -> None:
        sizes = np.arange(2, MAX_DRAFT_TOKENS + 2)
        likeness = np.minimum.outer(sizes, sizes) / np.maximum.outer(sizes, sizes)
        self._likeness = likeness**2  # how much a size says about another
        self._slopes = np.zeros(len(sizes))  # weighted sums, of time per additional token
        self._weights = np.zeros(len(sizes))
        self._plain = 0.0  # seconds
        self._plain_count = 0
        self._passes = 0  # since what was measured was last weighed
        self._multiples: list[float] = []

    @property
    def known(self) -> bool:
        """Whether a plain pass was timed."""
        return self._plain_count > 0

    def add(self, tokens: int, seconds: float) -> None:
        """A pass of so many tokens took so long."""
        self._passes += 1
        if tokens == 1:
            self._add_plain(seconds)  # after every token of a text that does not repeat: nothing slow here
        elif self._plain_count:
            self._weigh()
            slope = (seconds / self._plain - 1) / (tokens - 1)
            self._slopes[tokens - 2] += min(max(slope, 0.0), 2.0)
            self._weights[tokens - 2] += 1
            self._multiples = []

    def _weigh(self) -> None:
        """Let what was measured count less, for the passes since."""
        kept = _COSTS_KEPT**self._passes
        self._slopes *= kept
        self._weights *= kept
        self._passes = 0
        self._multiples = []

    def _add_plain(self, seconds: float) -> None:
        self._plain_count += 1
        if self._plain_count <= 2:  # the first one prepares buffers
            self._plain = min(seconds, self._plain or seconds)
            return
        share = max(0.1, 1 / self._plain_count)
        self._plain += share * (min(seconds, 3 * self._plain) - self._plain)

    def relative(self, seconds: float) -> float:
        """Seconds in plain passes."""
        return seconds / self._plain if self._plain else 0.0

    def multiples(self) -> list[float]:
        """The cost of passes of 1, 2, ... tokens; 1.0 is that of one token."""
        if self._passes >= _WEIGHED_EVERY:
            self._weigh()
        if self._multiples:
            return self._multiples
        weights = self._likeness @ self._weights + _SLOPE_WEIGHT
        slopes = (self._likeness @ self._slopes + _SLOPE * _SLOPE_WEIGHT) / weights
        self._multiples = [1.0, *(1 + slopes * np.arange(1, len(slopes) + 1)).tolist()]
        return self._multiples


class Acceptance:
    """How often drafted tokens are right, by how far they are trusted.

    Args:
        priors: what is assumed of each level of trust until it is measured.
    """

    def __init__(self, priors: Sequence[float]) -> None:
        self._priors = list(priors)
        self._tried = [0.0] * len(priors)
        self._right = [0.0] * len(priors)
        self._asked = [0] * len(priors)  # the pass in which a level was last brought up to date
        self._passes = 0

    def pass_over(self, passes: int = 1) -> None:
        """So many more passes are done."""
        self._passes += passes

    def add(self, trust: int, right: bool) -> None:
        """A drafted token was right or wrong, those before it being right."""
        self._age(trust)
        self._tried[trust] = self._tried[trust] * _RATE_KEPT + 1
        self._right[trust] = self._right[trust] * _RATE_KEPT + right

    def rate(self, trust: int) -> float:
        """The probability that a token of this trust is right if those before it are."""
        self._age(trust)
        return (self._right[trust] + self._priors[trust] * _RATE_WEIGHT) / (self._tried[trust] + _RATE_WEIGHT)

    def _age(self, trust: int) -> None:
        kept = _RATES_KEPT ** (self._passes - self._asked[trust])
        self._asked[trust] = self._passes
        self._tried[trust] *= kept
        self._right[trust] *= kept


class Pace:
    """How many drafted tokens a pass is worth.

    Args:
        priors: see :class:`Acceptance`.
        usual: a level of trust that counts every token, for a source that needs time for each; None if it
            does not.
    """

    def __init__(self, priors: Sequence[float], usual: int | None = None) -> None:
        self._acceptance = Acceptance(priors)
        self._usual = usual
        self._costs = PassCosts()
        self._draft_cost = 0.0  # of one drafted token, in plain passes

    @property
    def ready(self) -> bool:
        """Whether it is known what a plain pass costs."""
        return self._costs.known

    def worth(self, trusts: Sequence[int]) -> int:
        """How many tokens of a finished draft are worth evaluating.

        Args:
            trusts: the trust in each of its tokens.
        """
        if not self.ready:
            return 0
        costs = self._costs.multiples()
        best, best_rate = 0, _GAIN
        expected = likely = 1.0
        for count, trust in enumerate(trusts, start=1):
            likely *= self._acceptance.rate(trust)
            if likely < _UNLIKELY:
                break
            expected += likely
            if expected / costs[count] > best_rate:
                best, best_rate = count, expected / costs[count]
        return best

    def worth_drafting(self, trusts: Sequence[int]) -> bool:
        """Whether another token is worth drafting, with the time that it takes.

        Args:
            trusts: the trust in each token that was drafted for this pass.
        """
        if not self.ready or self._usual is None:
            return False
        costs = self._costs.multiples()
        drafted = len(trusts)
        rate = self._acceptance.rate(self._usual)
        likely = expected = 1.0
        for trust in trusts:
            likely *= self._acceptance.rate(trust)
            expected += likely
        # what was spent on the draft so far is spent
        reached = max(expected / (costs[drafted] + drafted * self._draft_cost), _GAIN)
        for more in range(1, len(costs) - drafted):
            likely *= rate
            expected += likely
            cost = costs[drafted + more] + (drafted + more) * self._draft_cost
            if expected / cost > reached:
                return True
        return False

    def add_draft(self, tokens: int, seconds: float) -> None:
        """So many tokens were drafted in so much time."""
        if tokens and self.ready:
            cost = self._costs.relative(seconds) / tokens
            self._draft_cost += (cost - self._draft_cost) * (0.2 if self._draft_cost else 1.0)

    def add_pass(
        self, tokens: int, seconds: float, trusts: Sequence[int] = (), right: int = 0, passes: int = 1
    ) -> None:
        """A pass was done.

        Args:
            tokens: the tokens that it evaluated, drafts included; 0 if its time says nothing.
            seconds: the time of the evaluation.
            trusts: the trust in each drafted token.
            right: how many of these were right.
            passes: this one, and plain ones before it that were not added.
        """
        self._acceptance.pass_over(passes)
        if tokens:
            self._costs.add(tokens, seconds)
        for index, trust in enumerate(trusts[: right + 1]):
            self._acceptance.add(trust, index < right)
            if self._usual is not None:
                self._acceptance.add(self._usual, index < right)
