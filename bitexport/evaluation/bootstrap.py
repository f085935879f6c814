"""How sure BLEU, chrF and the share of exact answers are: 95% intervals by bootstrap over the pairs.

The pairs of a test set are a sample; another one would give other scores. Each resample draws as many pairs,
with replacement, and scores every side on the same ones: a difference between two sides is then known more
exactly than either score (paired bootstrap, Koehn 2004).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000
#: The scores with an interval; "exact" is in percent, too.
SCORES = ("bleu", "chrf", "exact")
_ENDS = (2.5, 97.5)  # percentiles
_DRAWS_AT_ONCE = 10_000_000  # memory: 8 bytes each
_Values = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Interval:
    """The middle 95% of what the resamples gave."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """Of one side, for each of :data:`SCORES`, which all range from 0 to 100.

    Attributes:
        scores: the interval of the score.
        differences: the interval of its difference from the teacher's score on the same pairs, in points;
            None for the teacher, or without one.
        resamples: how many there were.
    """

    scores: dict[str, Interval]
    differences: dict[str, Interval] | None
    resamples: int

    def to_json(self) -> dict[str, Any]:
        """``[low, high]`` of each."""
        return {
            "resamples": self.resamples,
            "scores": _to_json(self.scores),
            "differences": None if self.differences is None else _to_json(self.differences),
        }


def bootstrap(
    answers: Mapping[str, Sequence[str]],
    references: Sequence[str],
    teacher: str | None = None,
    seed: int = 0,
    means: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Uncertainty]:
    """Intervals for every side.

    Args:
        answers: of each side by its name, one per reference; stripped.
        references: the true answers.
        teacher: the side that the others are compared with.
        seed: of the resamples, which are the same in every call with as many pairs.
        means: further entries of the result by name, each the mean score of several sides, for example of
            one model trained with several seeds. The interval is that of the choice of pairs only.
    """
    references = [reference.strip() for reference in references]
    counts = {name: _counts([text.strip() for text in texts], references) for name, texts in answers.items()}
    sums: dict[str, list[npt.NDArray[np.int64]]] = {name: [] for name in answers}
    random = np.random.default_rng(seed)
    size = len(references)
    for begin in range(0, RESAMPLES, step := max(1, _DRAWS_AT_ONCE // size)):
        # How often each pair is in each resample: as if drawn one by one, with replacement.
        draws = random.multinomial(size, np.full(size, 1 / size), size=min(step, RESAMPLES - begin))
        for name, values_of_pairs in counts.items():
            sums[name].append(draws @ values_of_pairs)
    values = {name: _scores(np.concatenate(found), size) for name, found in sums.items()}
    for name, sides in (means or {}).items():
        values[name] = {score: np.mean([values[side][score] for side in sides], axis=0) for score in SCORES}
    return {
        name: Uncertainty(
            {score: _interval(found[score]) for score in SCORES},
            None
            if teacher is None or name == teacher
            else {score: _interval(found[score] - values[teacher][score]) for score in SCORES},
            RESAMPLES,
        )
        for name, found in values.items()
    }


def _counts(answers: Sequence[str], references: Sequence[str]) -> npt.NDArray[np.int64]:
    """``[pairs, counts]``: for each pair what BLEU and chrF count, and whether the answer is exact."""
    found = [np.array(metric._extract_corpus_statistics(answers, [references])) for metric in _metrics()]
    exact = [[answer == reference] for answer, reference in zip(answers, references, strict=True)]
    return np.concatenate([*found, np.array(exact)], axis=1).astype(np.int64)


def _scores(sums: npt.NDArray[np.int64], pairs: int) -> _Values:
    """Every score of each resample, ``[resamples]``, from the sums of its counts, ``[resamples, counts]``."""
    bleu, chrf = _metrics()
    width = 2 + 2 * bleu.max_ngram_order  # lengths, and the n-grams that are right and all
    return {
        "bleu": np.array([bleu._compute_score_from_stats(row.tolist()).score for row in sums[:, :width]]),
        "chrf": np.array([chrf._compute_score_from_stats(row.tolist()).score for row in sums[:, width:-1]]),
        "exact": 100 * sums[:, -1] / pairs,
    }


def _metrics() -> tuple[Any, Any]:
    from sacrebleu.metrics import BLEU, CHRF

    return BLEU(), CHRF()


def _interval(values: npt.NDArray[np.float64]) -> Interval:
    low, high = np.percentile(values, _ENDS)
    return Interval(float(low), float(high))


def _to_json(intervals: Mapping[str, Interval]) -> dict[str, list[float]]:
    return {name: [interval.low, interval.high] for name, interval in intervals.items()}
