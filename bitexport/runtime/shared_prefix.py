"""Evaluates many token sequences at once, what they begin with in common only once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitexport.errors import GGUFError, UsageError
from bitexport.progress import Progress, ProgressEvent, ignore
from bitexport.runtime.prefix_tree import Batch, Node, Planner, Query
from bitexport.runtime.session import Session
from bitexport.runtime.threads import default_threads

#: Tokens per evaluation: fewer leave the matrix kernels idle, more make every token attend to more others.
ROOM = 512

#: Sequences that are evaluated together.
SLOTS = 63

#: Tokens in the cache for what is generated, and the most sequences that generate together.
_GENERATED = 4096
_GENERATING = 16

#: Positions whose predictions are looked at together: 32 MiB in float32 for a vocabulary of 128k.
_ROWS = 64

#: llama.cpp wants more tokens than sequences.
_SMALLEST_CONTEXT = 256

#: The sequence that holds what the next batch continues; that of slot ``s`` is ``s + 1``.
_HOLDER = 0


@dataclass(slots=True)
class Answer:
    """How likely some tokens are.

    Attributes:
        logprobs: float64, the natural logarithm of each token's probability.
        greedy: whether each of them is the most likely one in its place.
    """

    logprobs: npt.NDArray[np.float64]
    greedy: bool = True


class SharedPrefixSession(Session):
    """A :class:`~bitexport.runtime.session.Session` for many sequences that begin alike.

    Its context grows to what the sequences need.

    Args:
        path: the GGUF file.
        n_threads: the number of threads; 0 for one per core.
        exact: see :class:`~bitexport.runtime.session.Session`.
        share: False evaluates every sequence from its beginning.
        slots: sequences that are evaluated together.

    Raises:
        GGUFError, UsageError, NativeLibraryError: see :class:`~bitexport.runtime.session.Session`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        n_threads: int = 0,
        exact: bool = True,
        share: bool = True,
        slots: int = SLOTS,
    ) -> None:
        self._exact = exact
        self.threads = n_threads or default_threads()
        self._slots = slots
        super().__init__(path, n_ctx=_SMALLEST_CONTEXT, n_threads=self.threads, exact=exact)
        # a state of a recurrent model cannot be cut back to an earlier token
        recurrent = self._api.llama_model_is_recurrent(self._model) or self._api.llama_model_is_hybrid(
            self._model
        )
        self._share = share and not recurrent
        if recurrent:
            self._slots = 1

    def _context_params(self, n_ctx: int, n_threads: int, exact: bool, sequences: int) -> Any:
        params = super()._context_params(n_ctx, n_threads, exact, sequences)
        params.n_ctx = n_ctx
        params.n_seq_max = self._slots + 1
        params.kv_unified = True  # one cache for all, in which sequences can have tokens in common
        params.swa_full = True  # keep what is outside a sliding window: the next sequence may begin there
        return params

    def answer(self, queries: Sequence[Query], progress: Progress = ignore) -> list[Answer]:
        """The probabilities of each query's tokens.

        Args:
            queries: what to predict.
            progress: called after every batch.

        Raises:
            UsageError: a query has no token before those to predict, or an id that the model lacks.
            GGUFError: a context of this length cannot be created, or llama.cpp fails.
        """
        answers = [Answer(np.zeros(len(query.ids) - query.first)) for query in queries]
        seen = [0] * len(queries)
        for batch in self._batches(queries, self._slots, progress):
            for part in self._evaluated(batch):
                wanted = [node.wanted for node in part if node.wanted]
                for begin in range(0, len(wanted), _ROWS):
                    self._collect(begin, wanted[begin : begin + _ROWS], answers, seen)
        return answers

    def continue_greedily(
        self,
        prompts: Sequence[Sequence[int]],
        limit: int,
        ended: Callable[[list[int]], bool],
        progress: Progress = ignore,
    ) -> list[list[int]]:
        """Continue each prompt with the most likely token, again and again.

        Args:
            prompts: one or more token ids each.
            limit: the most tokens to generate, 1 or more.
            ended: whether a continuation, of which the last token is new, is complete.
            progress: called after every batch.

        Raises:
            UsageError: a prompt is empty, or has an id that the model lacks.
            GGUFError: as for :meth:`answer`.
        """
        # what is asked for is the prediction of a token, whichever, after the prompt
        queries = [Query((*prompt, 0), len(prompt)) for prompt in prompts]
        slots = min(self._slots, _GENERATING, max(1, _GENERATED // limit))
        found: list[list[int]] = [[] for _ in prompts]
        for batch in self._batches(queries, slots, progress, generated=limit):
            for part in self._evaluated(batch):
                wanted = [node.wanted for node in part if node.wanted]
                for row, asked in zip(self._rows(len(wanted)), wanted, strict=True):
                    for index, _ in asked:
                        found[index].append(int(row.argmax()))
            members = batch.members
            for _ in range(1, limit):
                members = [(index, slot) for index, slot in members if not ended(found[index])]
                if not members:
                    break
                self._evaluate(
                    [
                        Node(
                            found[index][-1],
                            len(prompts[index]) + len(found[index]) - 1,
                            [slot],
                            [(index, 0)],
                        )
                        for index, slot in members
                    ]
                )
                for row, (index, _) in zip(self._rows(len(members)), members, strict=True):
                    found[index].append(int(row.argmax()))
        return found

    def _batches(
        self, queries: Sequence[Query], slots: int, progress: Progress, generated: int = 0
    ) -> Iterator[Batch]:
        """The batches of some queries, each with its part of the cache prepared."""
        if not queries:
            return
        self._check(queries)
        cells = max(len(query.ids) for query in queries) + ROOM
        self._make_room(cells + slots * generated)
        planner = Planner(cells=cells, room=ROOM, slots=slots, share=self._share, separate=generated > 0)
        done = 0
        for batch in planner.batches(queries):
            self._prepare(batch)
            yield batch
            done += len(batch.members)
            progress(ProgressEvent(done, len(queries), "requests", ""))

    def _check(self, queries: Sequence[Query]) -> None:
        for query in queries:
            if not 1 <= query.first < len(query.ids):
                raise UsageError(
                    f"token {query.first} of {len(query.ids)} is the first to predict; expected one that has "
                    "a token before it"
                )
            self._check_ids(query.ids)

    def _make_room(self, cells: int) -> None:
        if cells > self.n_ctx or self._used:
            self._close_context()
            self._open_context(max(cells, self.n_ctx), self.threads, self._exact)
            self.n_ctx = self._api.llama_n_ctx(self._context)
        self._used = 0

    def _prepare(self, batch: Batch) -> None:
        """Give each of the batch's sequences what it takes from the cache, and remove everything else."""
        memory = self._api.llama_get_memory(self._context)
        continued = max(batch.kept)
        if continued == 0:
            self._api.llama_memory_clear(memory, False)
            return
        self._api.llama_memory_seq_rm(memory, _HOLDER, -1, -1)
        self._api.llama_memory_seq_cp(memory, batch.source + 1, _HOLDER, 0, continued)
        self._api.llama_memory_seq_keep(memory, _HOLDER)
        for slot, kept in enumerate(batch.kept):
            if kept:
                self._api.llama_memory_seq_cp(memory, _HOLDER, slot + 1, 0, kept)

    def _evaluated(self, batch: Batch) -> Iterator[list[Node]]:
        """The nodes in parts, each after it was evaluated."""
        for begin in range(0, len(batch.nodes), ROOM):
            part = batch.nodes[begin : begin + ROOM]
            self._evaluate(part)
            yield part

    def _evaluate(self, nodes: Sequence[Node]) -> None:
        self._owner.check()
        batch = self._api.llama_batch_init(len(nodes), 0, self._slots + 1)
        try:
            batch.n_tokens = len(nodes)
            for index, node in enumerate(nodes):
                batch.token[index] = node.token
                batch.pos[index] = node.position
                batch.n_seq_id[index] = len(node.slots)
                sequences = batch.seq_id[index]
                for place, slot in enumerate(node.slots):
                    sequences[place] = slot + 1
                batch.logits[index] = bool(node.wanted)
            self._decode_batch(batch)
        finally:
            self._api.llama_batch_free(batch)

    def _rows(self, count: int) -> npt.NDArray[np.float32]:
        """The logits of the last evaluation, float32 ``[count, V]``; valid until the next one."""
        if not count:
            return np.empty((0, self.n_vocab), dtype=np.float32)
        flat = np.ctypeslib.as_array(self._api.llama_get_logits(self._context), shape=(count * self.n_vocab,))
        return flat.reshape(count, self.n_vocab)

    def _collect(
        self, begin: int, wanted: Sequence[list[tuple[int, int]]], answers: list[Answer], seen: list[int]
    ) -> None:
        """Add what was asked of the rows from ``begin`` on to the answers."""
        rows = self._rows(begin + len(wanted))[begin:]
        best = rows.argmax(axis=1)
        peaks = rows[np.arange(len(rows)), best]
        totals = np.exp(rows - peaks[:, None]).sum(axis=1, dtype=np.float64)
        if not np.isfinite(totals).all():
            raise GGUFError(
                f"{self.path}: the model's logits are not finite; find the tensor with bitexport doctor"
            )
        for row, asked in enumerate(wanted):
            for index, token in asked:
                answer = answers[index]
                answer.logprobs[seen[index]] = (
                    float(rows[row, token]) - float(peaks[row]) - np.log(totals[row])
                )
                answer.greedy &= bool(best[row] == token)
                seen[index] += 1
