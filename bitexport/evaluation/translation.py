"""BLEU and chrF, computed by sacrebleu, with the signatures that make them comparable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Translation:
    """How close greedy answers are to the true ones.

    Attributes:
        bleu, chrf: sacrebleu's corpus scores with its defaults, 0 to 100.
        bleu_signature, chrf_signature: sacrebleu's own description of how they were computed.
        exact: the fraction of answers that equal the true ones.
        ended: the fraction of answers that ended before the token limit.
        tokens: number of generated tokens.
    """

    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str
    exact: float
    ended: float
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """The numbers as one JSON object."""
        return asdict(self)


def translation(answers: Sequence[str], references: Sequence[str], *, ended: int, tokens: int) -> Translation:
    """Score answers against their references, one to one; both are stripped.

    Args:
        answers, references: texts in the same order.
        ended: number of answers that ended before the token limit.
        tokens: number of tokens generated for all answers.
    """
    from sacrebleu.metrics import BLEU, CHRF

    answers = [answer.strip() for answer in answers]
    references = [reference.strip() for reference in references]
    bleu, chrf = BLEU(), CHRF()
    bleu_score = bleu.corpus_score(answers, [references]).score
    chrf_score = chrf.corpus_score(answers, [references]).score
    return Translation(
        bleu=float(bleu_score),
        chrf=float(chrf_score),
        bleu_signature=str(bleu.get_signature()),
        chrf_signature=str(chrf.get_signature()),
        exact=sum(map(str.__eq__, answers, references)) / len(references),
        ended=ended / len(references),
        tokens=tokens,
    )
