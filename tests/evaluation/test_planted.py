"""The figures for known answers and hidden states: planted sides instead of models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import sacrebleu

from bitexport.evaluation import EvaluationReport, PromptAnswer, evaluate
from bitexport.evaluation.items import Item
from bitexport.evaluation.side import ModelRole
from bitexport.metrics.likelihood import PredictionScore

END = 0
PAIRS = [
    PromptAnswer("one", "the cat sat on the mat", "1"),
    PromptAnswer("two", "a dog ran in the old park"),
    PromptAnswer("three", "it rained all day long"),
    PromptAnswer("four", "nobody was at home then"),
]
RIGHT = {pair.prompt: pair.answer for pair in PAIRS}
# Two are right, one of them after a space; one has other words; one does not end.
ROUGH = {
    **RIGHT,
    "two": " a dog ran in the old park",
    "three": "it was raining all day",
    "four": "nobody was at home",
}


class Planted:
    """A side and its runner in one: one token per byte, END after every answer but ROUGH["four"]."""

    path, kind, n_vocab, n_ctx = "planted", "float", 256, 64
    end: int | None = END
    ends = frozenset({END})

    def __init__(self, role: ModelRole, answers: dict[str, str], loss: float, state: Sequence[float]) -> None:
        self.role, self.name = role, f"{role}-python"
        self.answers, self.loss = answers, loss
        self.states: npt.NDArray[np.float32] = np.array([state] * len(PAIRS), dtype=np.float32)

    def encode(self, text: str, special: bool) -> list[int]:  # noqa: ARG002
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode()

    @contextmanager
    def open(self, longest: int) -> Iterator[Any]:  # noqa: ARG002
        yield self

    def close(self) -> None: ...

    def score(self, items: Sequence[Item], progress: Any) -> PredictionScore:  # noqa: ARG002
        counted = sum(len(item.ids) - item.first for item in items)
        return PredictionScore(counted, 0, counted * self.loss)

    def greedy(self, prompts: Sequence[Sequence[int]], ends: Any, max_tokens: int, progress: Any) -> Any:  # noqa: ARG002
        assert ends == {END}
        found = [self.encode(self.answers[self.decode(prompt)], False) for prompt in prompts]
        return [ids if ids == self.encode(ROUGH["four"], False) else [*ids, END] for ids in found]

    def embed(self, sequences: Sequence[Sequence[int]], progress: Any) -> Any:  # noqa: ARG002
        assert [self.decode(ids) for ids in sequences] == list(RIGHT)
        return self.states


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, gguf_of: Callable[..., Path]) -> EvaluationReport:
    sides = [Planted("teacher", RIGHT, 1.0, [3, 4]), Planted("student", ROUGH, 1.5, [4, 3])]
    monkeypatch.setattr("bitexport.evaluation.driver.open_sides", lambda *_: (sides, None))
    monkeypatch.setattr("bitexport.evaluation.driver.fingerprint", lambda path: f"of {path.name}")
    file = gguf_of("packed-multiply")
    return evaluate(file, teacher=file, pairs=PAIRS)


def test_answers_are_scored_against_the_true_ones(report: EvaluationReport) -> None:
    teacher, student = (column.translation for column in report.columns)
    assert teacher is not None
    assert (teacher.bleu, teacher.chrf, teacher.exact, teacher.ended) == (pytest.approx(100), 100, 1, 1)
    assert student is not None
    found, true = [text.strip() for text in ROUGH.values()], list(RIGHT.values())
    bleu, chrf = (sacrebleu.corpus_bleu, sacrebleu.corpus_chrf)
    assert student.bleu == pytest.approx(bleu(found, [true]).score)
    assert student.chrf == pytest.approx(chrf(found, [true]).score)
    # swapping answers and references gives another score, so the test would notice
    assert abs(student.bleu - bleu(true, [found]).score) > 1
    assert abs(student.chrf - chrf(true, [found]).score) > 1
    assert (student.exact, student.ended) == (0.5, 0.75)
    assert student.tokens == sum(map(len, ROUGH.values())) + 3


def test_kept_is_in_percent_of_the_teacher(report: EvaluationReport) -> None:
    teacher, student = report.columns
    kept = report.kept(student)
    assert kept is not None
    assert student.translation is not None
    assert kept.bleu == pytest.approx(student.translation.bleu)
    assert kept.chrf == pytest.approx(student.translation.chrf)
    assert kept.pairs_perplexity == pytest.approx(np.exp(0.5))
    assert student.similarity == pytest.approx(24 / 25)
    assert teacher.similarity is None


def test_samples_show_the_answer_of_every_side(report: EvaluationReport) -> None:
    samples = report.to_json()["samples"]
    assert len(samples) == len(PAIRS)
    assert samples[0]["source"] == "1"
    assert samples[2] == {
        "source": None,
        "prompt": "three",
        "answer": RIGHT["three"],
        "found": {"teacher-python": RIGHT["three"], "student-python": ROUGH["three"]},
    }
