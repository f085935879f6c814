"""Runs every side on the same data, one after another, so that only one model is in memory at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitexport.errors import UsageError
from bitexport.evaluation.bootstrap import bootstrap
from bitexport.evaluation.items import Item, PromptAnswer, pair_items, text_items
from bitexport.evaluation.models import Models, open_sides, require_modules
from bitexport.evaluation.report import Column, EvaluationReport
from bitexport.evaluation.shared_tokenizer import shared_encode, shared_end_token
from bitexport.evaluation.side import Runner, Side
from bitexport.evaluation.translation import translation
from bitexport.gguf.fingerprint import fingerprint
from bitexport.progress import Progress, ProgressEvent, ignore
from bitexport.text.prompts import built_in_prompts

_SAMPLES = 5


def evaluate(
    model: str | Path,
    *,
    teacher: str | Path | None = None,
    student_gguf: str | Path | None = None,
    teacher_gguf: str | Path | None = None,
    text: str | None = None,
    pairs: Sequence[PromptAnswer] | None = None,
    limit: int | None = None,
    max_tokens: int = 128,
    threads: int = 0,
    progress: Progress = ignore,
) -> EvaluationReport:
    """Measure a model in Python and in C++, next to its teacher.

    Perplexity and next-token accuracy on the text and on the pairs' answers; BLEU and chrF of greedy answers
    to the pairs; and for checkpoints with a teacher, the mean cosine between the two models' mean last hidden
    states over the prompts, or over the text's windows if there are no pairs.

    Args:
        model: a checkpoint folder, ternary or float, or a GGUF file. A checkpoint without
            ``student_gguf`` is converted to a temporary file.
        teacher: a checkpoint folder or a GGUF file.
        student_gguf, teacher_gguf: the file made from the folder.
        text: held-out text; bitexport's built-in prompts if there are no pairs either.
        pairs: held-out pairs.
        limit: use only this many pairs, and this many windows of text.
        max_tokens: of a greedy answer; 0 skips the answers.
        threads: 0 chooses.
        progress: called for every item.

    Raises:
        UsageError: there is nothing to measure on, or it does not fit the models.
        UnsupportedError: a required package is not installed.
        CheckpointError, TokenizerError, GGUFError: a model cannot be read or run.
    """
    models = Models(model, teacher, student_gguf, teacher_gguf)
    models.check()
    _check_numbers(pairs, limit, max_tokens)
    require_modules(*(["torch", "transformers"] if models.needs_pytorch else []))
    require_modules(*(["sacrebleu"] if pairs and max_tokens else []))
    if text is None and pairs is None:
        text = "\n\n".join(built_in_prompts())
    skipped: dict[str, str] = {}
    with ExitStack() as stack:
        sides, converted = open_sides(stack, models, threads, skipped, progress)
        n_ctx = min(side.n_ctx for side in sides)
        evaluation = _Evaluation(sides, n_ctx, text, (pairs or [])[:limit], limit, max_tokens)
        columns = [evaluation.measure(side, progress) for side in sides]
    evaluation.compare_hidden_states(columns, skipped)
    evaluation.bootstrap(columns)
    return EvaluationReport(
        columns=columns,
        pairs=len(evaluation.pairs),
        windows=len(evaluation.text_items),
        max_tokens=max_tokens,
        n_ctx=n_ctx,
        converted=converted,
        skipped=skipped,
        samples=_samples(evaluation.pairs, columns),
    )


def _check_numbers(pairs: Sequence[PromptAnswer] | None, limit: int | None, max_tokens: int) -> None:
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; expected 1 or more")
    if max_tokens < 0:
        raise UsageError(f"max tokens is {max_tokens}; expected 0 or more")
    if pairs is not None and not pairs:
        raise UsageError("there are no pairs; give at least one, or a text")


class _Evaluation:
    """The data as tokens, the same for every side, and the results of the sides."""

    def __init__(
        self,
        sides: Sequence[Side],
        n_ctx: int,
        text: str | None,
        pairs: Sequence[PromptAnswer],
        limit: int | None,
        max_tokens: int,
    ) -> None:
        self.pairs = pairs
        self._max_tokens = max_tokens
        first = sides[0]
        encode = shared_encode(sides)
        self.text_items = [] if text is None else text_items(text, encode, n_ctx, limit)
        self.pair_items = [] if not pairs else pair_items(pairs, encode, shared_end_token(sides), n_ctx)
        self.ends = next((side.ends for side in sides if side.kind != "gguf"), first.ends)
        if first.end is not None:
            self.ends |= {first.end}
        answered = [item.first + max_tokens for item in self.pair_items]
        lengths = [len(item.ids) for item in (*self.text_items, *self.pair_items)]
        self._longest = min(n_ctx, max(*lengths, *answered, 0))
        self._states: dict[str, npt.NDArray[np.float32]] = {}

    def measure(self, side: Side, progress: Progress) -> Column:
        """Load one side, measure everything, and free it."""
        column = Column(side.name, side.role, side.path, side.kind)
        if side.kind == "gguf":
            column.fingerprint = fingerprint(side.path)

        def report(event: ProgressEvent) -> None:
            progress(ProgressEvent(event.done, event.total, event.unit, f"{side.name}: {event.label}"))

        report(ProgressEvent(0, 0, "", "loading"))
        with side.open(self._longest) as runner:
            start = time.perf_counter()
            if self.text_items:
                column.text = runner.score(self.text_items, report)
            if self.pair_items:
                column.pairs = runner.score(self.pair_items, report)
            if self.pair_items and self._max_tokens:
                self._answer(column, side, runner, report)
            states = runner.embed(self._prompts(), report)
            column.seconds = time.perf_counter() - start
        if states is not None:
            self._states[side.name] = states
        return column

    def _prompts(self) -> list[list[int]]:
        """The token sequences on which hidden states are compared."""
        items: Sequence[Item] = self.pair_items or self.text_items
        return [item.ids[: item.first] if self.pair_items else item.ids for item in items]

    def _answer(self, column: Column, side: Side, runner: Runner, progress: Progress) -> None:
        prompts = [item.ids[: item.first] for item in self.pair_items]
        found = runner.greedy(prompts, self.ends, self._max_tokens, progress)
        column.answers = [side.decode([i for i in ids if i not in self.ends]).strip() for ids in found]
        column.translation = translation(
            column.answers,
            [pair.answer for pair in self.pairs],
            ended=sum(ids[-1] in self.ends for ids in found if ids),
            tokens=sum(map(len, found)),
        )

    def compare_hidden_states(self, columns: Sequence[Column], skipped: dict[str, str]) -> None:
        """Set the similarity of the student's column in Python, or note in ``skipped`` why there is none."""
        teacher = next((column for column in columns if column.role == "teacher"), None)
        student = next((column for column in columns if column.name == "student-python"), None)
        if teacher is None:
            return
        if student is None or teacher.name not in self._states:
            skipped["similarity"] = "needs teacher and student in PyTorch; give both as checkpoint folders"
            return
        teacher_states, student_states = self._states[teacher.name], self._states[student.name]
        if teacher_states.shape != student_states.shape:
            skipped["similarity"] = (
                f"the teacher's hidden size is {teacher_states.shape[1]}, the student's "
                f"{student_states.shape[1]}"
            )
            return
        student.similarity = mean_cosine(teacher_states, student_states)

    def bootstrap(self, columns: Sequence[Column]) -> None:
        """Set the intervals of every column that has answers."""
        answers = {column.name: column.answers for column in columns if column.answers}
        if not answers:
            return
        teacher = next((column.name for column in columns if column.role == "teacher"), None)
        found = bootstrap(
            answers, [pair.answer for pair in self.pairs], teacher if teacher in answers else None
        )
        for column in columns:
            column.uncertainty = found.get(column.name)


def mean_cosine(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> float:
    """The mean cosine between corresponding rows of two ``[N, D]`` arrays, in float64."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / norms).mean())


def _samples(pairs: Sequence[PromptAnswer], columns: Sequence[Column]) -> list[dict[str, Any]]:
    return [
        {
            "source": pair.source,
            "prompt": pair.prompt,
            "answer": pair.answer,
            "found": {column.name: column.answers[number] for column in columns if column.answers},
        }
        for number, pair in enumerate(pairs[:_SAMPLES])
    ]
