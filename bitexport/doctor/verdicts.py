"""Why does the model print garbage? The decision tree, its thresholds and its verdicts.

The questions are asked in this order, and the first that is answered decides:

1. Are there tensors that no training gives: NaN, no scale, all zeros, one copied over another?
   -> **bad-tensors**, whatever the model writes.
2. Does the GGUF file split text into other tokens than the checkpoint? -> **tokenizer-mismatch**.
3. Does the model, quantized as it is meant to run, predict text? If so, go on with 6.
4. Does it predict text without quantization, or with only the weights quantized (all that a packed checkpoint
   has)? -> **not-trained-with-quantization**.
5. It never does. Are there other signs of bad tensors? -> **bad-tensors**. Does its vocabulary not fit the
   tokenizer? -> **tokenizer-mismatch**. Does it speak a language when it is left to itself? If that is not
   the tokenizer's -> **tokenizer-mismatch**; if it is -> **unfamiliar-text**. Otherwise -> **undertrained**.
6. Does C++ compute what PyTorch computes, as parity judges it? If so -> **healthy**.
7. Does the file hold the checkpoint's tensors and hyper-parameters? If not -> **conversion**.
   If so -> **kernel**.

A model that was trained with quantization from the start may predict badly *without* it: its master weights
were never used as they are. So the float model is only asked about when the quantized one is bad.

"Predicts text" is measured against a model that knows how often every token occurs and nothing else. Of the
entropy of that one, context takes away a part: the skill, 1 - loss / baseline. A table of token pairs takes
away about a quarter; a language model half and more; an untrained one takes away nothing, and a broken one
does worse than the table without context. :data:`MIN_SKILL` is a fifth. It does not depend on the size of the
vocabulary, as a perplexity would. A quantized model is bad as well when it has lost more than a quarter of
the skill of the same model in float (:data:`MIN_SKILL_LEFT`): then quantization is what is wrong with it,
even if what it writes has some sense. One that was trained with quantization has lost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from bitexport.doctor.examination import Examination
from bitexport.doctor.free_sampling import FreeSampling
from bitexport.doctor.samples import Sample
from bitexport.doctor.stages import Stage
from bitexport.health import Finding

#: the part of the entropy of single tokens that context must take away.
MIN_SKILL = 0.2

#: the part of the float model's skill that quantization must leave.
MIN_SKILL_LEFT = 0.75

#: the same in what the model makes up itself, for that to be a language: twice as much, for there it is at
#: home.
MIN_SAMPLED_SKILL = 0.4

#: of a language, at most this fraction of the tokens are the one before.
MAX_REPEATED = 0.5

#: what encoding must keep of the model's own words, if the tokenizer is its own: this part of what it would
#: lose of the same tokens shuffled. Where it would lose next to nothing, this tells nothing.
MIN_KEPT = 0.5
MAX_KEPT_SHUFFLED = 0.9

GUIDE = "docs/troubleshooting.md"

#: every verdict by its name, which is its section of the guide, and what to do.
VERDICTS: Mapping[str, str] = MappingProxyType(
    {
        "healthy": "if what it prints is still wrong, look at the prompt's format and at the sampling",
        "bad-tensors": "save or download the checkpoint again, or go back to one from before the damage",
        "tokenizer-mismatch": "put the tokenizer beside it that it was trained with, and convert again",
        "not-trained-with-quantization": "train it with quantization in the forward pass, or run it in float",
        "unfamiliar-text": "give --text a file of the kind of text that it was trained on",
        "undertrained": "train it longer, or convert a later checkpoint",
        "conversion": "convert the checkpoint again with `bitexport convert`",
        "kernel": "report it, with the output of `bitexport parity` and BITEXPORT_TIER=scalar beside it",
    }
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer.

    Attributes:
        name: one of :data:`VERDICTS`.
        sentence: what is wrong, in a sentence.
        evidence: the facts that it rests on, and others worth knowing.
        advice: what to do.
        see: the section of the guide that says more.
    """

    name: str
    sentence: str
    evidence: list[str]
    advice: str
    see: str


@dataclass
class Facts:
    """What the stages and the examination have shown; what could not be looked at is empty or None.

    Attributes:
        findings: signs in the checkpoint.
        samples, stages: by kind of text, and by name.
        examination: of the tensors.
        tokenizer_difference: how the file tokenizes otherwise, as a clause.
        logit_difference: how C++ differs from PyTorch beyond rounding, as a clause.
        no_file: why there is no GGUF file to look at, as a clause.
        free_sampling: what the model says when left to itself; asked only where that decides.
        conversion_error: why convert would not make a file.
    """

    findings: list[Finding] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    stages: dict[str, Stage] = field(default_factory=dict)
    examination: Examination | None = None
    tokenizer_difference: str | None = None
    logit_difference: str | None = None
    conversion_error: str | None = None
    free_sampling: FreeSampling | None = None

    def skill(self, stage: str, kind: str | None = None) -> float:
        """The part of the entropy of single tokens that context takes away; -inf where that is not known."""
        if stage not in self.stages:
            return -math.inf
        sample = next(s for s in self.samples if s.kind == (kind or self.kind))
        loss = self.stages[stage].losses[sample.kind]
        return 1 - loss / sample.baseline if math.isfinite(loss) else -math.inf

    @property
    def kind(self) -> str:
        """The kind of text that the model predicts best at any stage of PyTorch's; it is judged by that."""
        python = [name for name in self.stages if name != "c++"]
        best = max(self.samples, key=lambda s: max((self.skill(name, s.kind) for name in python), default=0))
        return best.kind

    @property
    def least_quantized(self) -> str:
        """The stage with the least quantization that could run."""
        return next(name for name in ("float", "weights", "both") if name in self.stages)

    @property
    def predicts(self) -> bool:
        """Whether the model, quantized as it is meant to run, predicts text."""
        left = self.skill("both") >= MIN_SKILL_LEFT * max(self.skill("float"), self.skill("weights"))
        return self.skill("both") >= MIN_SKILL and left

    @property
    def never_predicts(self) -> bool:
        """Whether it does not even without quantization."""
        return max(self.skill(name) for name in self.stages if name != "c++") < MIN_SKILL


def decide(facts: Facts) -> Verdict:
    """The first answer of the tree in this module's docstring."""
    warnings = [finding for finding in facts.findings if finding.level == "warning"]
    damage = [finding.message for finding in warnings if finding.damage]
    others = [finding.message for finding in warnings if not finding.damage]
    if damage:
        count = sum(finding.count for finding in warnings if finding.damage)
        tensors = "a tensor" if count == 1 else f"{count} tensors"
        return _verdict(
            facts, "bad-tensors", f"The checkpoint has {tensors} that no training gives.", [*damage, *others]
        )
    if facts.tokenizer_difference is not None:
        return _verdict(
            facts,
            "tokenizer-mismatch",
            "The GGUF file splits text into other tokens than the checkpoint does.",
            [facts.tokenizer_difference, *others],
        )
    if not facts.predicts:
        return _fault_in_python(facts, warnings)
    if facts.conversion_error is not None:
        return _verdict(
            facts,
            "conversion",
            "The model is sound, but cannot be converted.",
            [facts.conversion_error, *others],
        )
    if facts.logit_difference is None:
        return _verdict(
            facts, "healthy", "The model predicts text, and C++ computes what PyTorch computes.", others
        )
    return _fault_in_cpp(facts, others)


def _fault_in_python(facts: Facts, warnings: list[Finding]) -> Verdict:
    messages = [finding.message for finding in warnings]
    if not facts.never_predicts:
        base = "in float" if facts.least_quantized == "float" else "with only its weights quantized"
        best = max(facts.skill("float"), facts.skill("weights"))
        lost = min(1.0, 1 - facts.skill("both") / best)
        return _verdict(
            facts,
            "not-trained-with-quantization",
            f"Quantized as it should run, the model loses {lost:.0%} of the skill that it has {base}: it "
            "was not trained that way.",
            [*_norm_evidence(facts), *messages],
        )
    tensors = [
        f.message
        for f in warnings
        if f.name in ("zero-fraction", "dead-rows", "dead-columns", "scale-at-floor")
    ]
    if tensors:
        return _verdict(
            facts,
            "bad-tensors",
            "The model does not predict text at any stage, and its tensors do not look like trained ones.",
            messages,
        )
    if any(finding.name == "vocabulary-mismatch" for finding in warnings):
        return _verdict(
            facts,
            "tokenizer-mismatch",
            "The model does not predict text at any stage, and its vocabulary is not the tokenizer's.",
            messages,
        )
    if facts.free_sampling is not None and is_language(facts.free_sampling):
        evidence = [_sampling_evidence(facts.free_sampling), *messages]
        if is_foreign(facts.free_sampling, vouched=facts.kind == "text"):
            sentence = "The model has learned a language, but not that of this tokenizer."
            return _verdict(facts, "tokenizer-mismatch", sentence, evidence)
        sentence = "The model has learned a language, but not that of the text."
        return _verdict(facts, "unfamiliar-text", sentence, evidence)
    spoken = [] if facts.free_sampling is None else [_sampling_evidence(facts.free_sampling)]
    if facts.least_quantized == "float":
        sentence = "The model does not predict text even in float: it has not learned enough."
    else:
        sentence = (
            "The model does not predict text: it has not learned enough, or was never trained with "
            "quantization (its master weights would tell, and are not here)."
        )
    return _verdict(facts, "undertrained", sentence, [*spoken, *messages])


def is_language(words: FreeSampling) -> bool:
    """Whether what the model makes up is a language."""
    return words.skill >= MIN_SAMPLED_SKILL and words.repeated <= MAX_REPEATED


def is_foreign(words: FreeSampling, *, vouched: bool) -> bool:
    """Whether that language is not written in the tokenizer's tokens.

    Args:
        vouched: the user gave the text as one that the model should know. That decides where encoding would
            keep even shuffled tokens, as with a small vocabulary.
    """
    if words.kept_shuffled > MAX_KEPT_SHUFFLED:
        return vouched
    return words.kept < words.kept_shuffled + MIN_KEPT * (1 - words.kept_shuffled)


def _fault_in_cpp(facts: Facts, others: list[str]) -> Verdict:
    assert facts.logit_difference is not None
    examination = facts.examination
    differences = examination.differences if examination else []
    metadata = examination.metadata if examination else []
    if differences or metadata:
        what = "tensors" if differences else "hyper-parameters"
        count = len(differences or metadata)
        return _verdict(
            facts,
            "conversion",
            f"The model is sound, but the file is not the checkpoint's: {count} of its {what} differ.",
            [*_first(differences), *_first(metadata), facts.logit_difference, *others],
        )
    return _verdict(
        facts,
        "kernel",
        "The file holds the checkpoint's tensors and hyper-parameters, but C++ computes something else.",
        [facts.logit_difference, *others],
    )


def _verdict(facts: Facts, name: str, sentence: str, evidence: list[str]) -> Verdict:
    measured = [_perplexities(facts)] if facts.stages else []
    return Verdict(name, sentence, [*measured, *evidence], VERDICTS[name], f"{GUIDE}#{name}")


def _perplexities(facts: Facts) -> str:
    kind = facts.kind
    sample = next(s for s in facts.samples if s.kind == kind)
    figures = ", ".join(f"{stage.perplexity(kind):,.4g} ({name})" for name, stage in facts.stages.items())
    return f"perplexity {figures}; without context {math.exp(sample.baseline):,.4g}"


def _norm_evidence(facts: Facts) -> list[str]:
    norms = [
        norm for norm in (facts.examination.norms if facts.examination else []) if norm.ratio is not None
    ]
    if not norms:
        return []
    worst = min(norms, key=lambda norm: norm.ratio or 0)
    return [
        f"quantization leaves {worst.ratio:.0%} of the Frobenius norm of '{worst.name}' "
        f"({worst.before:.4g} -> {worst.after:.4g}); of Gaussian weights it leaves 66%"
    ]


def _sampling_evidence(words: FreeSampling) -> str:
    return (
        f"left to itself, it has a skill of {words.skill:.2f} (a language: at least {MIN_SAMPLED_SKILL:g}) "
        f"and repeats {words.repeated:.0%} of its tokens; encoding its words again keeps {words.kept:.0%} of "
        f"their tokens, and {words.kept_shuffled:.0%} when they are shuffled"
    )


def _first(clauses: list[str], limit: int = 3) -> list[str]:
    more = [f"and {len(clauses) - limit} more"] if len(clauses) > limit else []
    return clauses[:limit] + more
