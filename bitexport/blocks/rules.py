"""Which of a block's unknown tokens are settled in a pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitexport.errors import UsageError

RULES = ("greedy", "confidence", "adaptive")

# Of the rule adaptive. The threshold falls by _STEP of itself with every pass over a block, and by
# _KNOWN_LEFT where the token before is settled, but not below _LOWEST of itself.
_STEP = 0.05
_KNOWN_LEFT = 0.15
_LOWEST = 0.5


@dataclass(frozen=True, slots=True)
class BlockRule:
    """Decides which tokens are settled.

    The confidence of a position is the probability of its most likely token, before any sampling option. In
    every pass the most confident position is settled, whatever the rule; one at which the text would end
    counts only if all tokens in front of it are settled.

    Attributes:
        name: ``greedy`` settles no other: one token a pass, the exact reference. ``confidence`` settles all
            positions with a confidence above the threshold. ``adaptive`` does, too, with a threshold that is
            lower right after a settled token, and that falls with every pass over a block.
        threshold: 0 to 1. 1 makes every rule settle one token a pass.

    Raises:
        UsageError: the name is unknown, or the threshold out of range.
    """

    name: str = "confidence"
    threshold: float = 0.9

    def __post_init__(self) -> None:
        if self.name not in RULES:
            raise UsageError(f"the rule {self.name!r} is unknown; expected one of {', '.join(RULES)}")
        if not 0 <= self.threshold <= 1:
            raise UsageError(f"a threshold of {self.threshold}; expected 0 to 1")

    def above(
        self, confidence: npt.NDArray[np.float64], after_settled: npt.NDArray[np.bool_], step: int
    ) -> npt.NDArray[np.bool_]:
        """Which of N unknown positions are above the threshold; all arrays have shape ``[N]``.

        Args:
            confidence: of each position.
            after_settled: whether the token before it is settled.
            step: the passes over this block before this one.
        """
        if self.name == "greedy" or self.threshold == 1:
            return np.zeros(len(confidence), dtype=np.bool_)
        if self.name == "confidence":
            return confidence > self.threshold
        factor = np.where(after_settled, 1 - _KNOWN_LEFT, 1.0) - _STEP * step
        return confidence > self.threshold * np.maximum(factor, _LOWEST)


DEFAULT_RULE = BlockRule()


def rule_of(name: str | None, threshold: float | None) -> BlockRule:
    """The rule with a name and a threshold as a user gave them; None for the default.

    Raises:
        UsageError: see :class:`BlockRule`; or the rule has no threshold.
    """
    if name == "greedy" and threshold is not None:
        raise UsageError(
            f"the rule greedy has no threshold, and {threshold:g} was given: it settles one token a pass; "
            "leave the threshold out, or choose confidence or adaptive"
        )
    return BlockRule(
        DEFAULT_RULE.name if name is None else name,
        DEFAULT_RULE.threshold if threshold is None else threshold,
    )
