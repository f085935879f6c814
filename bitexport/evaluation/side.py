"""What a side of an evaluation is: a model that can be asked about its tokens, and then run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from bitexport.evaluation.items import Item
from bitexport.metrics.likelihood import PredictionScore
from bitexport.progress import Progress

Role = Literal["teacher", "student"]


class Runner(Protocol):
    """A loaded model. ``progress`` counts items from 0 to as many as there are."""

    def score(self, items: Sequence[Item], progress: Progress) -> PredictionScore:
        """How well the counted tokens of all items are predicted."""
        ...

    def greedy(
        self, prompts: Sequence[Sequence[int]], ends: frozenset[int], max_tokens: int, progress: Progress
    ) -> list[list[int]]:
        """The most likely tokens after each prompt, one by one.

        An answer stops after one of ``ends``, which it then has as its last token, at ``max_tokens``, or
        where the context is full.
        """
        ...

    def embed(self, sequences: Sequence[Sequence[int]], progress: Progress) -> npt.NDArray[np.float32] | None:
        """The mean of each sequence's last hidden states, float32 ``[N, hidden]``; None: it gives none."""
        ...


class Side(Protocol):
    """A model before it is loaded.

    Attributes:
        name: ``teacher-python``, ``teacher-c++``, ``student-python`` or ``student-c++``.
        path: the folder or the file.
        kind: ``float`` or ``ternary`` for a checkpoint, ``gguf`` for a file.
        n_vocab: how many tokens the model has.
        n_ctx: tokens that its context holds.
        end: the token that an answer ends with; None: the tokenizer has none.
        ends: all tokens that end a text.
    """

    name: str
    role: Role
    path: str
    kind: str
    n_vocab: int
    n_ctx: int
    end: int | None
    ends: frozenset[int]

    def encode(self, text: str, special: bool) -> list[int]:
        """Token ids, see :data:`~bitexport.evaluation.items.Encode`."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens, without special ones."""
        ...

    def open(self, longest: int) -> AbstractContextManager[Runner]:
        """Load the model for sequences of at most ``longest`` tokens; freed when the ``with`` block ends."""
        ...

    def close(self) -> None:
        """Let go of what the tokenizer holds."""
        ...
