"""Why does the model print garbage? The decision tree, its thresholds and its verdicts.

The questions are asked in this order, and the first definite answer decides:

1. Are there tensors that no training produces: NaN, no scale, all zeros, a copy of another tensor?
   -> **bad-tensors**, regardless of the model's output.
2. Does the GGUF file tokenize text differently from the checkpoint? -> **tokenizer-mismatch**.
3. Does the model predict text when quantized as intended? If so, continue with 6.
4. Does it predict text without quantization, or with only the weights quantized (the least quantization that
   a packed checkpoint allows)? -> **not-trained-with-quantization**.
5. It never does. Are there other signs of bad tensors? -> **bad-tensors**. Does its vocabulary not fit the
   tokenizer? -> **tokenizer-mismatch**. Does it produce a language when it samples freely? If not in this
   tokenizer's tokens -> **tokenizer-mismatch**; if so -> **unfamiliar-text**. Otherwise -> **undertrained**.
6. Does C++ compute what PyTorch computes, by parity's criteria? If so -> **healthy**.
7. Does the file contain the checkpoint's tensors and hyper-parameters? If not -> **conversion**.
   If so -> **kernel**.

A model that was trained with quantization from the start may predict badly *without* it: its master weights
were never used unquantized. So the float model only matters when the quantized one is bad.

"Predicts text" is relative to a baseline that knows how often each token occurs and nothing else. The skill,
1 - loss / baseline, is the fraction of the baseline's entropy that context removes. A table of token pairs
reaches about 0.25, a language model 0.5 or more, an untrained model 0; a broken one is worse than the
baseline, below 0. :data:`MIN_SKILL` is 0.2. Unlike perplexity, skill does not depend on the vocabulary size.
A quantized model is also bad if it has lost more than a quarter of the skill of the same model in float
(:data:`MIN_SKILL_LEFT`): then quantization is the problem, even if the output makes some sense. A model that
was trained with quantization loses nothing.
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

#: The fraction of the baseline's entropy that context must remove.
MIN_SKILL = 0.2

#: The fraction of the float model's skill that must remain after quantization.
MIN_SKILL_LEFT = 0.75

#: The skill that freely sampled text must have to count as a language: twice :data:`MIN_SKILL`, because the
#: model wrote the text itself.
MIN_SAMPLED_SKILL = 0.4

#: In a language, at most this fraction of the tokens repeat the previous one.
MAX_REPEATED = 0.5

#: The tokenizer is the model's own if re-encoding the sampled text keeps more tokens than re-encoding the
#: same tokens shuffled, by at least this fraction of what shuffling loses. If shuffling loses less than a
#: fifth, half of that is within the noise of the 384 sampled tokens, and the comparison decides nothing.
MIN_KEPT = 0.5
#: A model that writes little but white space shows no language.
MIN_WORDS = 0.1
MAX_KEPT_SHUFFLED = 0.8

GUIDE = "docs/troubleshooting.md"

#: Advice for each verdict; a verdict's name is also the name of its section in the guide.
VERDICTS: Mapping[str, str] = MappingProxyType(
    {
        "healthy": "if the output is still wrong, check the prompt format and the sampling settings",
        "bad-tensors": "save or download the checkpoint again, or go back to one from before the damage",
        "tokenizer-mismatch": "put the tokenizer that it was trained with into its folder, and convert again",
        "not-trained-with-quantization": "train it with quantization in the forward pass, or run it in float",
        "unfamiliar-text": "give --text a file of the kind of text that it was trained on; for a model "
        "that was trained on answers only, use `bitexport eval --pairs`",
        "undertrained": "train it longer, or convert a later checkpoint",
        "conversion": "convert the checkpoint again with `bitexport convert`",
        "kernel": "report it, with the output of `bitexport parity` with and without BITEXPORT_TIER=scalar",
    }
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer.

    Attributes:
        name: one of :data:`VERDICTS`.
        sentence: what is wrong, in one sentence.
        evidence: the facts it is based on, then other facts worth knowing.
        advice: what to do.
        see: the section of the guide with the details.
    """

    name: str
    sentence: str
    evidence: list[str]
    advice: str
    see: str


@dataclass
class Facts:
    """What the stages and the examination have shown; anything that could not be examined is empty or None.

    Attributes:
        findings: signs of a bad checkpoint.
        samples: one for each kind of text.
        stages: by name.
        examination: of the tensors.
        tokenizer_difference: how the file tokenizes differently from the checkpoint, as a clause.
        logit_difference: how C++ differs from PyTorch by more than rounding explains, as a clause.
        conversion_error: why convert refuses the checkpoint, as a clause.
        decoding_difference: how the file would be decoded in another way than the model was trained for, as a
            clause.
        free_sampling: what free sampling showed; only measured when it can decide the verdict.
    """

    findings: list[Finding] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    stages: dict[str, Stage] = field(default_factory=dict)
    examination: Examination | None = None
    tokenizer_difference: str | None = None
    logit_difference: str | None = None
    conversion_error: str | None = None
    decoding_difference: str | None = None
    free_sampling: FreeSampling | None = None

    def skill(self, stage: str, kind: str | None = None) -> float:
        """The fraction of the baseline's entropy that context removes; -inf if it is unknown."""
        if stage not in self.stages:
            return -math.inf
        sample = next(s for s in self.samples if s.kind == (kind or self.kind))
        loss = self.stages[stage].losses[sample.kind]
        return 1 - loss / sample.baseline if math.isfinite(loss) else -math.inf

    @property
    def kind(self) -> str:
        """The kind of text that the model predicts best at any stage in PyTorch; it is judged by that one."""
        python = [name for name in self.stages if name != "c++"]
        best = max(self.samples, key=lambda s: max((self.skill(name, s.kind) for name in python), default=0))
        return best.kind

    @property
    def least_quantized(self) -> str:
        """The stage with the least quantization among those that ran."""
        return next(name for name in ("float", "weights", "both") if name in self.stages)

    @property
    def as_trained(self) -> str:
        """The stage that runs the model as it was trained: ``weights`` if only these were quantized."""
        return "both" if "both" in self.stages else "weights"

    @property
    def predicts(self) -> bool:
        """Whether the model predicts text when quantized as intended."""
        skill = self.skill(self.as_trained)
        return skill >= MIN_SKILL and skill >= MIN_SKILL_LEFT * max(
            self.skill("float"), self.skill("weights")
        )

    @property
    def never_predicts(self) -> bool:
        """Whether it predicts text at no stage in PyTorch, not even without quantization."""
        return max(self.skill(name) for name in self.stages if name != "c++") < MIN_SKILL


def decide(facts: Facts) -> Verdict:
    """The first answer of the tree in this module's docstring."""
    warnings = [finding for finding in facts.findings if finding.level == "warning"]
    damage = [finding.message for finding in warnings if finding.damage]
    others = [finding.message for finding in warnings if not finding.damage]
    if damage:
        count = sum(finding.count for finding in warnings if finding.damage)
        tensors = "a tensor" if count == 1 else f"{count} tensors"
        sentence = f"The checkpoint has {tensors} that no training produces."
        return _verdict(facts, "bad-tensors", sentence, [*damage, *others])
    if facts.tokenizer_difference is not None:
        return _verdict(
            facts,
            "tokenizer-mismatch",
            "The GGUF file tokenizes text differently from the checkpoint.",
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
    if facts.decoding_difference is not None and facts.logit_difference is None:
        return _verdict(
            facts,
            "conversion",
            "The model is sound, but the file would be decoded in another way than it was trained for.",
            [f"{facts.decoding_difference}: convert the checkpoint again", *others],
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
        lost = min(1.0, 1 - facts.skill(facts.as_trained) / best)
        return _verdict(
            facts,
            "not-trained-with-quantization",
            f"Quantized as intended, the model loses {lost:.0%} of the skill that it has {base}: it was not "
            "trained with quantization.",
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
            "The model does not predict text at any stage, and its tensors do not look trained.",
            messages,
        )
    if any(finding.name == "vocabulary-mismatch" for finding in warnings):
        return _verdict(
            facts,
            "tokenizer-mismatch",
            "The model does not predict text at any stage, and its vocabulary does not fit the tokenizer.",
            messages,
        )
    if facts.free_sampling is not None and is_language(facts.free_sampling):
        evidence = [_sampling_evidence(facts.free_sampling), *messages]
        if is_foreign(facts.free_sampling, user_text=facts.kind == "text"):
            sentence = "The model has learned a language, but with another tokenizer."
            return _verdict(facts, "tokenizer-mismatch", sentence, evidence)
        sentence = "The model has learned a language, but not that of the text it was tested on."
        return _verdict(facts, "unfamiliar-text", sentence, evidence)
    sampling = [] if facts.free_sampling is None else [_sampling_evidence(facts.free_sampling)]
    if facts.least_quantized == "float":
        sentence = "The model does not predict text even in float: it has not learned enough."
    else:
        sentence = (
            "The model does not predict text: it has not learned enough, or was never trained with "
            "quantization (its master weights would show which, but the checkpoint does not contain them)."
        )
    return _verdict(facts, "undertrained", sentence, [*sampling, *messages])


def is_language(sampled: FreeSampling) -> bool:
    """Whether the freely sampled text is a language."""
    return (
        sampled.skill >= MIN_SAMPLED_SKILL and sampled.repeated <= MAX_REPEATED and sampled.words >= MIN_WORDS
    )


def is_foreign(sampled: FreeSampling, *, user_text: bool) -> bool:
    """Whether that language is not written in this tokenizer's tokens.

    Args:
        user_text: whether the user gave the text, as one that the model should know. That decides if
            re-encoding keeps even shuffled tokens, as it does with a small vocabulary.
    """
    if sampled.kept_shuffled > MAX_KEPT_SHUFFLED:
        return user_text
    return sampled.kept < sampled.kept_shuffled + MIN_KEPT * (1 - sampled.kept_shuffled)


def _fault_in_cpp(facts: Facts, others: list[str]) -> Verdict:
    assert facts.logit_difference is not None
    examination = facts.examination
    differences = examination.differences if examination else []
    metadata = examination.metadata if examination else []
    if differences or metadata:
        what = "tensor" if differences else "hyper-parameter"
        count = len(differences or metadata)
        differ = f"{what} differs" if count == 1 else f"{what}s differ"
        return _verdict(
            facts,
            "conversion",
            f"The model is sound, but the file does not match the checkpoint: {count} {differ}.",
            [*_first(differences), *_first(metadata), facts.logit_difference, *others],
        )
    return _verdict(
        facts,
        "kernel",
        "The file contains the checkpoint's tensors and hyper-parameters, but C++ computes something else.",
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
        f"quantization keeps {worst.ratio:.0%} of the Frobenius norm of '{worst.name}' "
        f"({worst.before:.4g} -> {worst.after:.4g}); Gaussian weights keep 66%"
    ]


def _sampling_evidence(sampled: FreeSampling) -> str:
    return (
        f"sampling freely, it has a skill of {sampled.skill:.2f} (a language: at least "
        f"{MIN_SAMPLED_SKILL:g}), and {sampled.repeated:.0%} of its tokens repeat the previous one; "
        f"re-encoding its text keeps {sampled.kept:.0%} of the tokens, or {sampled.kept_shuffled:.0%} if "
        "they are shuffled first"
    )


def _first(clauses: list[str], limit: int = 3) -> list[str]:
    more = [f"and {len(clauses) - limit} more"] if len(clauses) > limit else []
    return clauses[:limit] + more
