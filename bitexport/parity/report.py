"""What a parity run found: its numbers, whether they pass, and what they mean in a sentence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bitexport.metrics.likelihood import Perplexities
from bitexport.metrics.logits import Agreement
from bitexport.parity.aligned import Alignment
from bitexport.parity.details import Details
from bitexport.parity.greedy import Continuation
from bitexport.parity.layers.result import LayersReport

MIN_COSINE = 0.9999
#: Perplexity of C++ and Python may differ by this much, relatively.
MAX_PERPLEXITY_DIFFERENCE = 0.001
#: Aligned logits may differ by this fraction of their length. A cosine alone would not see a wrong magnitude.
MAX_RELATIVE_ERROR = 0.005
#: Below this, on average, two sets of logits are hardly of the same model.
UNRELATED_COSINE = 0.95


@dataclass(frozen=True, slots=True)
class PromptResult:
    """One prompt: its tokens, how far the plain logits agree, and the greedy continuation if wanted.

    The continuation is judged as the logits are: aligned, or plain.
    """

    prompt: str
    tokens: int
    agreement: Agreement
    continuation: Continuation | None


@dataclass(frozen=True)
class ParityReport:
    """What :func:`parity` found.

    Attributes:
        prompts: one result a prompt.
        plain: all positions, both sides left to themselves.
        aligned: the same with embeddings and rounding decisions aligned; None when not looked at.
        noise_floor: PyTorch against itself, its embeddings off by one rounding; None when not asked for.
        perplexity: None when no text was given.
        min_cosine: the threshold.
        judged_aligned: the threshold applies to ``aligned``, not to ``plain``.
        greedy_tokens: asked for at each prompt.
        tier: the kernels that ran.
        layers: every step of every block; None when not asked for.
        details: what a page shows beside the numbers; None when not asked for.
    """

    prompts: list[PromptResult]
    plain: Agreement
    aligned: Alignment | None
    noise_floor: Agreement | None
    perplexity: Perplexities | None
    min_cosine: float
    judged_aligned: bool
    greedy_tokens: int
    tier: str
    layers: LayersReport | None = None
    details: Details | None = None

    @property
    def judged(self) -> Agreement:
        """The numbers that the threshold applies to."""
        return self.aligned.agreement if self.judged_aligned and self.aligned else self.plain

    @property
    def passed(self) -> bool:
        """Whether every threshold holds. NaN never passes."""
        same_perplexity = (
            self.perplexity is None or self.perplexity.relative_difference <= MAX_PERPLEXITY_DIFFERENCE
        )
        same_steps = self.layers is None or self.layers.first is None
        enough = self.judged.cosine_min >= self.min_cosine and self.mistake is None
        return same_perplexity and same_steps and enough

    @property
    def mistake(self) -> str | None:
        """What neither rounding nor quantized embeddings explain, as a clause. None if plain is judged."""
        if not self.judged_aligned or self.aligned is None:
            return None
        if self.aligned.unfaithful or self.aligned.unexplained:
            return self.aligned.describe()
        error = self.aligned.agreement.relative_error_max
        if not error <= MAX_RELATIVE_ERROR:
            return f"aligned logits differ by {error:.2%} of their length, more than {MAX_RELATIVE_ERROR:.2%}"
        for number, result in enumerate(self.prompts, start=1):
            parting = result.continuation.parting if result.continuation else None
            if parting is not None and not parting.near_tie:
                return f"prompt {number} is continued differently at step {parting.step}, and not at a tie"
        return None

    @property
    def greedy_match(self) -> float | None:
        """Fraction of prompts whose greedy continuations are identical; None when none were made."""
        made = [result.continuation for result in self.prompts if result.continuation is not None]
        return sum(item.parting is None for item in made) / len(made) if made else None

    def to_json(self) -> dict[str, Any]:
        """The contract's keys, then more."""
        judged = asdict(self.judged)
        return {
            "prompts": len(self.prompts),
            "positions": judged.pop("positions"),
            **judged,
            "greedy_match": self.greedy_match,
            "passed": self.passed,
            "min_cosine": self.min_cosine,
            "judged": "aligned" if self.judged_aligned else "plain",
            "plain": asdict(self.plain),
            "aligned": asdict(self.aligned) if self.aligned else None,
            "noise_floor": asdict(self.noise_floor) if self.noise_floor else None,
            "perplexity": _perplexity_json(self.perplexity),
            "greedy_tokens": self.greedy_tokens,
            "tier": self.tier,
            "layers": self.layers.to_json() if self.layers else None,
            "verdict": verdict(self),
            "rows": [_row_json(result) for result in self.prompts],
        }


def verdict(report: ParityReport) -> str:
    """What the numbers mean, in a sentence or two."""
    if report.layers is None or report.layers.first is None:
        return _of_logits(report)
    found = report.layers.describe()
    finding = f"{found[0].upper()}{found[1:]}."
    if report.judged.cosine_min >= report.min_cosine and report.mistake is None:
        return f"A step is wrong though the logits agree, so what follows undoes it. {finding}"
    return f"{_of_logits(report)} {finding}"


def _of_logits(report: ParityReport) -> str:
    judged, threshold = report.judged, report.min_cosine
    if report.passed:
        how = ", embeddings and rounding decisions aligned" if report.judged_aligned else ""
        return (
            f"C++ computes what PyTorch computes: cosine is at least {judged.cosine_min:.8f} at all "
            f"{judged.positions:,} positions{how} (threshold {threshold:g})."
        )
    if judged.cosine_min >= threshold and report.mistake is not None:
        return f"C++ and PyTorch disagree: {report.mistake}."
    text = report.perplexity
    if judged.cosine_min >= threshold and text and text.relative_difference > MAX_PERPLEXITY_DIFFERENCE:
        return (
            f"The logits agree, but perplexity differs by {text.relative_difference:.3%} "
            f"(at most {MAX_PERPLEXITY_DIFFERENCE:.1%} is expected)."
        )
    missed = f"cosine falls to {judged.cosine_min:.8f}, below the threshold {threshold:g}"
    if report.aligned is None:
        return f"C++ and PyTorch disagree: {missed}."
    if report.mistake is not None:
        # So far apart, it is rather another model than a mistake in this one.
        ask = " Is the file made from this checkpoint?" if judged.cosine_mean < UNRELATED_COSINE else ""
        return f"C++ and PyTorch disagree: {missed}; {report.aligned.describe()}.{ask}"
    if report.aligned.agreement.cosine_min >= threshold and not report.judged_aligned:
        return (
            f"No mistake, but below the threshold: {missed}; yet {report.aligned.describe()}. "
            "leave out --plain to judge by that."
        )
    return f"C++ and PyTorch disagree: {missed}; {report.aligned.describe()}."


def _perplexity_json(found: Perplexities | None) -> dict[str, Any] | None:
    return {**asdict(found), "relative_difference": found.relative_difference} if found else None


def _row_json(result: PromptResult) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": result.prompt, "tokens": result.tokens, **asdict(result.agreement)}
    del row["positions"]
    if result.continuation is not None:
        parting = result.continuation.parting
        row["greedy"] = {
            "identical": parting is None,
            "common_tokens": result.continuation.tokens,
            "parting": {**asdict(parting), "near_tie": parting.near_tie} if parting else None,
        }
    return row
