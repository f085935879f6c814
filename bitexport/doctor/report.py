"""The result of a diagnosis."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from bitexport.doctor.examination import Examination
from bitexport.doctor.samples import Sample
from bitexport.doctor.stages import STAGES, Stage
from bitexport.doctor.verdicts import Facts, Verdict


@dataclass(frozen=True)
class DoctorReport:
    """What :func:`~bitexport.doctor.driver.doctor` found.

    Attributes:
        checkpoint: its folder.
        gguf: the file that was given; None if a temporary one was made, which no longer exists.
        facts: everything that the verdict is based on.
        verdict: the answer.
        skipped: stages that did not run, with the reason.
    """

    checkpoint: str
    gguf: str | None
    facts: Facts
    verdict: Verdict
    skipped: dict[str, str]

    @property
    def sample(self) -> Sample | None:
        """The text that the model is judged by; None if nothing ran."""
        if not self.facts.stages:
            return None
        return next(s for s in self.facts.samples if s.kind == self.facts.kind)

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return self.verdict.name == "healthy"

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object, without ``schema``."""
        sample = self.sample
        examination = self.facts.examination or Examination([], [], [])
        return {
            "checkpoint": self.checkpoint,
            "gguf": self.gguf,
            "verdict": asdict(self.verdict),
            "text": None if sample is None else _text_json(sample),
            "stages": [_stage_json(stage, sample, self.facts) for stage in self.facts.stages.values()],
            "skipped": self.skipped,
            "norms": [{**asdict(norm), "ratio": norm.ratio} for norm in examination.norms],
            "tensor_differences": examination.differences,
            "metadata_differences": examination.metadata,
            "tokenizer_difference": self.facts.tokenizer_difference,
            "logit_difference": self.facts.logit_difference,
            "decoding_difference": self.facts.decoding_difference,
            "own_words": asdict(self.facts.free_sampling) if self.facts.free_sampling else None,
            "health": [asdict(finding) for finding in self.facts.findings],
        }


def _text_json(sample: Sample) -> dict[str, Any]:
    return {
        "kind": sample.kind,
        "prompt": sample.prompt,
        "tokens": sample.tokens,
        "unigram_perplexity": math.exp(sample.baseline),
    }


def _stage_json(stage: Stage, sample: Sample | None, facts: Facts) -> dict[str, Any]:
    assert sample is not None
    kind = sample.kind
    return {
        "stage": stage.name,
        "does": STAGES[stage.name],
        "perplexity": stage.perplexity(kind),
        "perplexities": {each: stage.perplexity(each) for each in stage.losses},
        "skill": facts.skill(stage.name),
        "entropy": stage.entropies[kind],
        "end_of_text": stage.end[kind],
        "top": [asdict(token) for token in stage.top[kind]],
    }
