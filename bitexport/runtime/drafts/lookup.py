"""Drafts from the text itself: what followed the last tokens where they stood before."""

from __future__ import annotations

from collections.abc import Sequence

from bitexport.runtime.drafts.limits import MAX_DRAFT_TOKENS
from bitexport.runtime.drafts.pace import Pace
from bitexport.runtime.sampling import Sampler

#: A place is a match if it ends with the same two tokens.
_SHORTEST = 2
#: Matches are compared this far back.
_LONGEST = 24
#: Places that are compared, the latest first.
_PLACES = 8

# The longer the match, the likelier the draft: lengths from which a level of trust begins, and what is
# assumed of it until it is measured.
_LEVELS = ((2, 0.3), (3, 0.45), (4, 0.6), (5, 0.7), (7, 0.8), (10, 0.9), (16, 0.95))


def _trust_of(length: int) -> int:
    return sum(length >= begin for begin, _ in _LEVELS) - 1


_TRUSTS = [max(_trust_of(length), 0) for length in range(_LONGEST + MAX_DRAFT_TOKENS + 1)]


class LookupDrafts:
    """Finds the longest match for the end of the text, and drafts what followed it.

    Costs no memory beside an index of the text, and next to no time.
    """

    name = "lookup"

    def __init__(self) -> None:
        self.pace = Pace([prior for _, prior in _LEVELS])
        self._ids: list[int] = []
        self._places: dict[tuple[int, int], list[int]] = {}  # of the token after each pair

    def begin(self, ids: Sequence[int]) -> None:
        """Start a text with these tokens."""
        self._ids = []
        self._places = {}
        for token in ids:
            self.follow(token)

    def follow(self, token: int) -> None:
        """Continue the text."""
        ids = self._ids
        ids.append(token)
        if len(ids) >= _SHORTEST:
            self._places.setdefault((ids[-2], token), []).append(len(ids))

    def propose(self, most: int, sampler: Sampler) -> tuple[list[int], list[int]]:  # noqa: ARG002
        """Draft what may come next.

        Args:
            most: the most tokens.
            sampler: not used.

        Returns:
            The tokens, and the trust in each.
        """
        place, length = self._longest_match()
        if not place:
            return [], []
        period = len(self._ids) - place
        # a text that repeats what it has just begun to repeat goes on in the draft
        trusts = _TRUSTS[length : length + most]
        worth = self.pace.worth(trusts)
        return [self._ids[place + index % period] for index in range(worth)], trusts[:worth]

    def _longest_match(self) -> tuple[int, int]:
        """The place after the longest match, and its length in tokens; 0 if there is none."""
        ids = self._ids
        end = len(ids)
        best = length = 0
        places = self._places.get((ids[-2], ids[-1]), ()) if end >= _SHORTEST else ()
        for place in reversed(places[-_PLACES - 1 : -1]):
            same = _SHORTEST
            while same < min(place, _LONGEST) and ids[place - 1 - same] == ids[end - 1 - same]:
                same += 1
            if same > length:
                best, length = place, same
            if length == _LONGEST:
                break
        return best, length

    def close(self) -> None:
        """Nothing to free."""
