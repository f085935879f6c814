"""A GGUF file in C++, run as a user runs it: llama.cpp's defaults, one sequence at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bitexport.evaluation.items import Item
from bitexport.evaluation.side import ModelRole
from bitexport.gguf.reader import read_gguf
from bitexport.metrics.likelihood import PredictionScore
from bitexport.progress import Progress, ProgressEvent
from bitexport.runtime.limits import SHORT_CONTEXT
from bitexport.runtime.session import Session
from bitexport.runtime.threads import default_threads

_SMALLEST_CONTEXT = 32


class CppSide:
    """See :class:`~bitexport.evaluation.side.Side`.

    Args:
        role: whether the file is the teacher's or the student's.
        path: the file.
        threads: 0 means one per core.

    Raises:
        GGUFError, NativeLibraryError, UsageError: it cannot be opened.
    """

    kind = "gguf"

    def __init__(self, role: ModelRole, path: str | Path, threads: int = 0) -> None:
        self.role = role
        self.name = f"{role}-c++"
        self.path = str(path)
        self._threads = threads or default_threads()
        # the tokenizer comes with the model; open() makes a context as long as the data needs
        self._session = Session(path, n_ctx=_SMALLEST_CONTEXT, n_threads=self._threads)
        metadata = read_gguf(path).metadata
        trained = metadata.get(f"{metadata.get('general.architecture')}.context_length")
        self.n_ctx = trained if isinstance(trained, int) and trained > 0 else SHORT_CONTEXT
        self.n_vocab = self._session.n_vocab
        self.end = self._session.end_of_text
        self.ends = frozenset(self._session.end_tokens())

    def encode(self, text: str, special: bool) -> list[int]:
        """Token ids."""
        return self._session.tokenize(text, special)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens, without special ones."""
        return b"".join(self._session.piece(token, special=False) for token in ids).decode("utf-8", "replace")

    @contextmanager
    def open(self, longest: int) -> Iterator[CppRunner]:
        """Make a context of at least ``longest`` tokens."""
        self._session.reopen(max(longest, _SMALLEST_CONTEXT), self._threads, 1)
        yield CppRunner(self._session, longest)

    def close(self) -> None:
        """Free the model."""
        self._session.close()


class CppRunner:
    """See :class:`~bitexport.evaluation.side.Runner`."""

    def __init__(self, session: Session, n_ctx: int) -> None:
        self._session = session
        self._n_ctx = n_ctx

    def score(self, items: Sequence[Item], progress: Progress) -> PredictionScore:
        """How well the counted tokens of all items are predicted."""
        score = PredictionScore()
        for done, item in enumerate(items):
            progress(ProgressEvent(done, len(items), "items", "predicting"))
            self._session.clear()
            ids = np.asarray(item.ids)
            begin = 0
            for logits in self._session.logits_in_parts(item.ids[:-1]):
                # row t of this chunk predicts ids[begin + t + 1]
                skip = max(0, item.first - 1 - begin)
                targets = ids[begin + 1 : begin + 1 + len(logits)]
                score.add(logits[skip:], targets[skip:])
                begin += len(logits)
        return score

    def greedy(
        self, prompts: Sequence[Sequence[int]], ends: frozenset[int], max_tokens: int, progress: Progress
    ) -> list[list[int]]:
        """The most likely tokens after each prompt, one by one."""
        answers: list[list[int]] = []
        for prompt in prompts:
            progress(ProgressEvent(len(answers), len(prompts), "pairs", "answering"))
            self._session.clear()
            answer: list[int] = []
            new = prompt
            for _ in range(min(max_tokens, self._n_ctx - len(prompt))):
                new = [int(self._session.feed(new).argmax())]
                answer += new
                if answer[-1] in ends:
                    break
            answers.append(answer)
        return answers

    def embed(self, sequences: Sequence[Sequence[int]], progress: Progress) -> None:  # noqa: ARG002
        """None: hidden states are only compared in PyTorch."""
        return
