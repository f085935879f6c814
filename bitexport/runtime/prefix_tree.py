"""Plans the evaluation of many token sequences so that what they begin with in common is computed once.

The choices of a question share the question, and the questions of a task share its examples. Sorted, such
sequences lie side by side, so one pass over them needs only the cache of the previous sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Query:
    """The tokens ``ids[first:]``, each to be predicted from all that are before it.

    Attributes:
        ids: two or more token ids.
        first: the first token to predict, from 1 to ``len(ids) - 1``.
    """

    ids: tuple[int, ...]
    first: int


@dataclass(slots=True)
class Node:
    """One token to evaluate, for all sequences that have it at this position after the same tokens.

    Attributes:
        token: its id.
        position: its position in the text.
        slots: the sequences that it belongs to.
        wanted: ``(query, token)`` for each query that asks how likely that token is after this one.
    """

    token: int
    position: int
    slots: list[int] = field(default_factory=list)
    wanted: list[tuple[int, int]] = field(default_factory=list)


@dataclass(slots=True)
class Batch:
    """Tokens that are evaluated together.

    Attributes:
        source: the slot of the previous batch whose cache is continued.
        kept: for each slot of this batch, how many tokens it takes from there.
        nodes: what to evaluate, every token after those that it follows.
        members: ``(query, slot)`` for each query that is answered.
    """

    source: int = 0
    kept: list[int] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    members: list[tuple[int, int]] = field(default_factory=list)

    @property
    def cells(self) -> int:
        """Tokens in the cache after the evaluation."""
        return max(self.kept, default=0) + len(self.nodes)


class Planner:
    """Divides queries into batches.

    Args:
        cells: tokens that the cache holds, at least as many as the longest query has.
        room: new tokens per batch, unless a single query needs more.
        slots: sequences per batch.
        share: False evaluates every query from its beginning.
        separate: give every query a slot of its own, even if another one begins with all of it.
    """

    def __init__(
        self, *, cells: int, room: int, slots: int, share: bool = True, separate: bool = False
    ) -> None:
        self._cells = cells
        self._room = room
        self._slots = slots
        self._share = share
        self._separate = separate

    def batches(self, queries: Sequence[Query]) -> Iterator[Batch]:
        """All batches, in the order in which they must be evaluated.

        Every query is in exactly one batch. ``Node.wanted`` and ``Batch.members`` have its index.
        """
        self._batch = Batch()
        self._before: tuple[int, ...] = ()  # the tokens in the cache that the batch continues
        self._last: tuple[int, ...] = ()  # those of the last query in the batch
        self._path: list[Node] = []  # the nodes for those of them that are not from the cache
        for index in sorted(range(len(queries)), key=lambda index: queries[index].ids):
            place = self._place(queries[index])
            if place is None:
                yield self._finish()
                place = self._place(queries[index])
            assert place is not None
            self._add(index, queries[index], *place)
        if self._batch.members:
            yield self._finish()

    def _finish(self) -> Batch:
        done = self._batch
        self._before = self._last if self._share else ()
        self._batch = Batch(source=len(done.kept) - 1)
        self._path, self._last = [], ()
        return done

    def _place(self, query: Query) -> tuple[int, int] | None:
        """Where the query branches off: tokens from the cache, and then tokens of the last query.

        None if this batch has no room for it, or does not predict what it asks for.
        """
        batch, tokens = self._batch, query.ids[:-1]
        # the predictions of what is in the cache are gone
        kept = min(common(self._before, tokens), query.first - 1)
        if not batch.members:
            return kept, 0
        shared = common(self._last, tokens) - batch.kept[-1] if self._share else 0
        if shared > 0:
            if query.first - 1 < batch.kept[-1]:
                return None
            kept = batch.kept[-1]
        shared = max(shared, 0)
        nodes = len(batch.nodes) + len(tokens) - kept - shared
        if (
            len(batch.kept) + (not self._goes_on(shared)) > self._slots
            or nodes > self._room
            or max(*batch.kept, kept) + nodes > self._cells
        ):
            return None
        return kept, shared

    def _goes_on(self, shared: int) -> bool:
        """Whether a query that shares so many nodes with the last one begins with all of it."""
        return not self._separate and 0 < shared == len(self._path)

    def _add(self, index: int, query: Query, kept: int, shared: int) -> None:
        batch, tokens = self._batch, query.ids[:-1]
        if not self._goes_on(shared):
            batch.kept.append(kept)
            del self._path[shared:]
            for node in self._path:
                node.slots.append(len(batch.kept) - 1)
        slot = len(batch.kept) - 1
        for position in range(kept + shared, len(tokens)):
            self._path.append(Node(tokens[position], position, [slot]))
            batch.nodes.append(self._path[-1])
        for position in range(query.first, len(query.ids)):
            self._path[position - 1 - kept].wanted.append((index, query.ids[position]))
        self._last = tokens
        batch.members.append((index, slot))


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    most = min(len(first), len(second))
    if first[:most] == second[:most]:
        return most
    return next(at for at in range(most) if first[at] != second[at])
