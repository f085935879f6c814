"""The two protocols of a side of an evaluation: a model before it is loaded, and after."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from bitexport.evaluation.items import Item
from bitexport.metrics.likelihood import PredictionScore
from bitexport.progress import Progress

ModelRole = Literal["teacher", "student"]


class Runner(Protocol):
    """A loaded model. ``progress`` counts the finished items."""

    def score(self, items: Sequence[Item], progress: Progress) -> PredictionScore:
        """How well the tokens ``ids[first:]`` of all items are predicted."""
        ...

    def greedy(
        self, prompts: Sequence[Sequence[int]], ends: frozenset[int], max_tokens: int, progress: Progress
    ) -> list[list[int]]:
        """Continue each prompt with the most likely token, again and again.

        An answer stops after one of ``ends``, which is then its last token, after ``max_tokens``, or when the
        context is full.
        """
        ...

    def embed(self, sequences: Sequence[Sequence[int]], progress: Progress) -> npt.NDArray[np.float32] | None:
        """The mean of each sequence's last hidden states, float32 ``[N, hidden]``; None if not available."""
        ...


class Side(Protocol):
    """A model before it is loaded.

    Attributes:
        name: ``teacher-python``, ``teacher-c++``, ``student-python`` or ``student-c++``.
        role: ``teacher`` or ``student``.
        path: the folder or the file.
        kind: ``float`` or ``ternary`` for a checkpoint, ``gguf`` for a file.
        n_vocab: size of the vocabulary.
        n_ctx: size of the context, in tokens.
        end: the token that ends an answer; None if the tokenizer has none.
        ends: all tokens that end a text.
    """

    name: str
    role: ModelRole
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
        """Free the tokenizer's resources."""
        ...
