"""Intervals by bootstrap, against resamples that are drawn and scored one by one."""

from __future__ import annotations

import numpy as np
import pytest
import sacrebleu

from bitexport.evaluation import bootstrap as module
from bitexport.evaluation.bootstrap import SCORES, bootstrap

WORDS = ["the", "file", "could", "not", "be", "opened", "because", "it", "is", "missing", "or", "closed"]


def texts(count: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(4, 12))) for _ in range(count)]


def spoiled(references: list[str], share: float, seed: int) -> list[str]:
    """Answers of which a share has one word replaced."""
    random = np.random.default_rng(seed)
    answers = []
    for reference in references:
        words = reference.split()
        if random.random() < share:
            words[random.integers(len(words))] = "something"
        answers.append(" ".join(words))
    return answers


def slowly(answers: dict[str, list[str]], references: list[str]) -> dict[str, dict[str, list[float]]]:
    """Every score of every resample, from the texts themselves."""
    random = np.random.default_rng(0)
    size = len(references)
    draws = random.multinomial(size, np.full(size, 1 / size), size=module.RESAMPLES)
    found: dict[str, dict[str, list[float]]] = {name: {score: [] for score in SCORES} for name in answers}
    for counts in draws:
        places = np.repeat(np.arange(size), counts).tolist()
        truth = [references[place] for place in places]
        for name, side in answers.items():
            chosen = [side[place] for place in places]
            found[name]["bleu"].append(sacrebleu.corpus_bleu(chosen, [truth]).score)
            found[name]["chrf"].append(sacrebleu.corpus_chrf(chosen, [truth]).score)
            found[name]["exact"].append(100 * sum(map(str.__eq__, chosen, truth)) / size)
    return found


def test_it_equals_resamples_of_the_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESAMPLES", 40)
    monkeypatch.setattr(module, "_DRAWS_AT_ONCE", 12 * 30)  # the resamples come in several parts
    references = texts(12, 1)
    answers = {"teacher": spoiled(references, 0.3, 2), "student": spoiled(references, 0.7, 3)}
    expected = slowly(answers, references)
    found = bootstrap(answers, references, "teacher")
    for name in answers:
        for score in SCORES:
            low, high = np.percentile(expected[name][score], [2.5, 97.5])
            assert found[name].scores[score].low == pytest.approx(low)
            assert found[name].scores[score].high == pytest.approx(high)
    differences = found["student"].differences
    assert differences is not None
    assert found["teacher"].differences is None
    for score in SCORES:
        gaps = np.subtract(expected["student"][score], expected["teacher"][score])
        assert differences[score].low == pytest.approx(np.percentile(gaps, 2.5))


def test_the_mean_of_several_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESAMPLES", 40)
    references = texts(12, 1)
    answers = {"teacher": spoiled(references, 0.3, 2), "0": spoiled(references, 0.7, 3)}
    answers["1"] = spoiled(references, 0.7, 4)
    expected = slowly(answers, references)
    found = bootstrap(answers, references, "teacher", means={"students": ["0", "1"]})
    assert found["0"] == bootstrap(answers, references, "teacher")["0"]
    assert found["students"].differences is not None
    for score in SCORES:
        mean = np.add(expected["0"][score], expected["1"][score]) / 2
        low, high = np.percentile(mean, [2.5, 97.5])
        assert found["students"].scores[score].low == pytest.approx(low)
        assert found["students"].scores[score].high == pytest.approx(high)
        gaps = mean - expected["teacher"][score]
        assert found["students"].differences[score].low == pytest.approx(np.percentile(gaps, 2.5))


def test_a_difference_is_known_better_than_the_scores() -> None:
    """Both sides fail on the same pairs; one of them, on a few more."""
    references = texts(200, 5)
    teacher = spoiled(references, 0.5, 6)
    student = [answer if number % 20 else "nothing" for number, answer in enumerate(teacher)]
    found = bootstrap({"teacher": teacher, "student": student}, references, "teacher")["student"]
    assert found.differences is not None
    width = found.scores["bleu"].high - found.scores["bleu"].low
    assert found.differences["bleu"].high - found.differences["bleu"].low < width
    assert found.differences["bleu"].high < 0


def test_the_interval_of_a_share_is_the_binomial_one() -> None:
    references = [str(number) for number in range(400)]
    answers = [text if number % 4 else "x" for number, text in enumerate(references)]
    interval = bootstrap({"model": answers}, references)["model"].scores["exact"]
    half = 1.96 * 100 * (0.75 * 0.25 / 400) ** 0.5
    assert interval.low == pytest.approx(75 - half, abs=0.8)
    assert interval.high == pytest.approx(75 + half, abs=0.8)


def test_equal_sides_and_a_single_pair() -> None:
    found = bootstrap({"teacher": ["a b c d e"], "student": ["a b c d e"]}, ["a b c d e"], "teacher")
    assert found["student"].differences is not None
    assert found["student"].differences["bleu"].low == found["student"].differences["bleu"].high == 0
    assert found["student"].scores["exact"].low == 100
