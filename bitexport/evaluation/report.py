"""The result of an evaluation: one column a side, and what each keeps of the teacher."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bitexport.evaluation.side import Role
from bitexport.evaluation.translation import Translation
from bitexport.metrics.likelihood import PredictionScore


@dataclass(slots=True)
class Column:
    """What one side made of the material; None where it was not asked.

    Attributes:
        name, role, path, kind: see :class:`~bitexport.evaluation.side.Side`.
        text: prediction of the text.
        pairs: prediction of the answers, their ends among them.
        translation: greedy answers against the true ones.
        answers: those greedy answers, one a pair, stripped.
        similarity: mean cosine of its hidden states with the teacher's, see :func:`.driver.evaluate`.
        seconds: of measuring, without loading.
    """

    name: str
    role: Role
    path: str
    kind: str
    text: PredictionScore | None = None
    pairs: PredictionScore | None = None
    translation: Translation | None = None
    answers: list[str] = field(default_factory=list)
    similarity: float | None = None
    seconds: float = 0.0

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
            "similarity": self.similarity,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, slots=True)
class Kept:
    """What a column keeps of the teacher.

    Attributes:
        bleu, chrf: in percent of the teacher's; None where the teacher has none.
        text_perplexity, pairs_perplexity: times the teacher's; 1 is as good, 2 twice as unsure.
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
        pairs: how many were used; 0 without a file.
        windows: how many windows of text.
        max_tokens: of a greedy answer.
        n_ctx: the context that all sides have.
        converted: how the student's file was made for the occasion; None where one was given or none made.
        skipped: what was not measured, and why.
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
        """What the others are held against: the teacher in Python, or else in C++."""
        return next((column for column in self.columns if column.role == "teacher"), None)

    def kept(self, column: Column) -> Kept | None:
        """What a column keeps of the teacher; None for the teacher itself, or without one."""
        teacher = self.teacher
        if teacher is None or column is teacher:
            return None
        ours, theirs = column.translation, teacher.translation
        return Kept(
            bleu=_percent(ours.bleu, theirs.bleu) if ours and theirs else None,
            chrf=_percent(ours.chrf, theirs.chrf) if ours and theirs else None,
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


def _percent(ours: float, theirs: float) -> float | None:
    return 100 * ours / theirs if theirs else None


def _ratio(ours: PredictionScore | None, theirs: PredictionScore | None) -> float | None:
    return ours.perplexity / theirs.perplexity if ours and theirs else None
