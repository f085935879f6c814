"""The result of an evaluation: one column per side, and how much of the teacher's quality each keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bitexport.evaluation.bootstrap import Uncertainty
from bitexport.evaluation.side import ModelRole
from bitexport.evaluation.translation import Translation
from bitexport.metrics.likelihood import PredictionScore


@dataclass(slots=True)
class Column:
    """The results of one side; None for what was not measured.

    Attributes:
        name, role, path, kind: see :class:`~bitexport.evaluation.side.Side`.
        text: how well the text is predicted.
        pairs: how well the answers are predicted, including their end tokens.
        translation: greedy answers compared with the true ones.
        uncertainty: 95% intervals of the scores of the answers.
        answers: the greedy answers, one per pair, stripped.
        similarity: mean cosine of its hidden states with the teacher's, see :func:`.driver.evaluate`.
        seconds: time of measuring, without loading.
        fingerprint: of a GGUF file, see :func:`bitexport.gguf.fingerprint.fingerprint`.
    """

    name: str
    role: ModelRole
    path: str
    kind: str
    text: PredictionScore | None = None
    pairs: PredictionScore | None = None
    translation: Translation | None = None
    uncertainty: Uncertainty | None = None
    answers: list[str] = field(default_factory=list)
    similarity: float | None = None
    seconds: float = 0.0
    fingerprint: str = ""

    def to_json(self) -> dict[str, Any]:
        """The numbers as one JSON object, without the answers."""
        return {
            "name": self.name,
            "role": self.role,
            "path": self.path,
            "kind": self.kind,
            "text": self.text.to_json() if self.text else None,
            "pairs": self.pairs.to_json() if self.pairs else None,
            "translation": self.translation.to_json() if self.translation else None,
            "uncertainty": self.uncertainty.to_json() if self.uncertainty else None,
            "similarity": self.similarity,
            "seconds": self.seconds,
            "fingerprint": self.fingerprint,
        }


@dataclass(frozen=True, slots=True)
class Kept:
    """How much of the teacher's quality a column keeps.

    Attributes:
        bleu, chrf: in percent of the teacher's; None if the teacher's is 0 or missing.
        text_perplexity, pairs_perplexity: divided by the teacher's; 1 is as good, 2 is twice as unsure.
    """

    bleu: float | None = None
    chrf: float | None = None
    text_perplexity: float | None = None
    pairs_perplexity: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The numbers as one JSON object."""
        return {
            "bleu_percent": self.bleu,
            "chrf_percent": self.chrf,
            "text_perplexity_ratio": self.text_perplexity,
            "pairs_perplexity_ratio": self.pairs_perplexity,
        }


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What :func:`~bitexport.evaluation.driver.evaluate` found.

    Attributes:
        columns: teacher first, Python before C++.
        pairs: number of pairs.
        windows: number of windows of text.
        max_tokens: limit of a greedy answer.
        n_ctx: the smallest context of all sides, which all of them use.
        converted: the types in the student's temporary GGUF file; None if there was none.
        skipped: what was not measured, with the reason.
        samples: the first pairs with every column's answer.
    """

    columns: list[Column]
    pairs: int
    windows: int
    max_tokens: int
    n_ctx: int
    converted: dict[str, str] | None
    skipped: dict[str, str]
    samples: list[dict[str, Any]]

    @property
    def teacher(self) -> Column | None:
        """The column that the others are compared with: the teacher in Python, or else in C++."""
        return next((column for column in self.columns if column.role == "teacher"), None)

    def kept(self, column: Column) -> Kept | None:
        """How much of the teacher's quality a column keeps; None for the teacher itself, or without one."""
        teacher = self.teacher
        if teacher is None or column is teacher:
            return None
        scores, teacher_scores = column.translation, teacher.translation
        return Kept(
            bleu=_percent(scores.bleu, teacher_scores.bleu) if scores and teacher_scores else None,
            chrf=_percent(scores.chrf, teacher_scores.chrf) if scores and teacher_scores else None,
            text_perplexity=_ratio(column.text, teacher.text),
            pairs_perplexity=_ratio(column.pairs, teacher.pairs),
        )

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object, without ``schema``."""
        columns = []
        for column in self.columns:
            kept = self.kept(column)
            columns.append({**column.to_json(), "kept": kept.to_json() if kept else None})
        return {
            "columns": columns,
            "pairs": self.pairs,
            "windows": self.windows,
            "max_tokens": self.max_tokens,
            "context": self.n_ctx,
            "converted": self.converted,
            "skipped": self.skipped,
            "samples": self.samples,
        }


def _percent(score: float, teacher_score: float) -> float | None:
    return 100 * score / teacher_score if teacher_score else None


def _ratio(column: PredictionScore | None, teacher: PredictionScore | None) -> float | None:
    return column.perplexity / teacher.perplexity if column and teacher else None
