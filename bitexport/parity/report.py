"""The result of a parity run: its numbers, whether they pass, and a sentence that interprets them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bitexport.metrics.likelihood import Perplexities
from bitexport.metrics.logits import Agreement
from bitexport.parity.activations import ActivationGrids
from bitexport.parity.aligned import Alignment
from bitexport.parity.blocks import BlockParity
from bitexport.parity.details import Details
from bitexport.parity.greedy import Continuation
from bitexport.parity.layers.result import LayersReport

MIN_COSINE = 0.9999
#: Largest relative difference between the perplexities of C++ and Python.
MAX_PERPLEXITY_DIFFERENCE = 0.001
#: Largest difference of aligned logits, as a fraction of their L2 norm. A cosine is blind to magnitude.
MAX_RELATIVE_ERROR = 0.005
#: Below this mean cosine, two sets of logits are hardly from the same model.
UNRELATED_COSINE = 0.95


@dataclass(frozen=True, slots=True)
class PromptResult:
    """The result of one prompt.

    Attributes:
        prompt: the text.
        tokens: its number of tokens.
        agreement: of the plain logits.
        continuation: greedy, aligned or plain, whichever is judged; None if not requested.
    """

    prompt: str
    tokens: int
    agreement: Agreement
    continuation: Continuation | None


@dataclass(frozen=True)
class ParityReport:
    """The result of :func:`bitexport.parity.parity`.

    Attributes:
        prompts: one result per prompt.
        plain: agreement over all positions, both sides unmodified.
        aligned: the same with embeddings and rounding decisions aligned; None if it was not computed.
        noise_floor: PyTorch against itself with embeddings off by one rounding; None if not requested.
        perplexity: of a text on both sides; None if no text was given.
        min_cosine: the threshold.
        judged_aligned: the threshold applies to ``aligned``, not to ``plain``.
        greedy_tokens: number of tokens that each prompt was continued with.
        tier: the kernels that ran.
        layers: every step of every block; None if not requested.
        details: what the report page shows in addition; None if not requested.
        activations: how each side rounds the activations of ternary layers.
        blocks: decoding in blocks, if the file is made for it.
        fingerprint: of the file, see :func:`bitexport.gguf.fingerprint.fingerprint`.
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
    activations: ActivationGrids | None = None
    fingerprint: str = ""
    blocks: BlockParity | None = None

    @property
    def judged(self) -> Agreement:
        """The agreement that the threshold applies to."""
        return self.aligned.agreement if self.judged_aligned and self.aligned else self.plain

    @property
    def passed(self) -> bool:
        """Whether every threshold is met. NaN never passes."""
        same_perplexity = (
            self.perplexity is None or self.perplexity.relative_difference <= MAX_PERPLEXITY_DIFFERENCE
        )
        same_steps = self.layers is None or self.layers.first is None
        enough = self.judged.cosine_min >= self.min_cosine and self.mistake is None
        same_blocks = self.blocks is None or self.blocks.passed(self.min_cosine)
        return same_perplexity and same_steps and enough and same_blocks

    @property
    def mistake(self) -> str | None:
        """A clause on what neither rounding nor quantized embeddings explain; None if plain is judged."""
        if not self.judged_aligned or self.aligned is None:
            return None
        if self.aligned.unfaithful or self.aligned.unexplained:
            return self.aligned.describe()
        error = self.aligned.agreement.relative_error_max
        if not error <= MAX_RELATIVE_ERROR:
            return (
                f"aligned logits differ by {error:.2%} of their L2 norm, more than {MAX_RELATIVE_ERROR:.2%}"
            )
        for number, result in enumerate(self.prompts, start=1):
            divergence = result.continuation.divergence if result.continuation else None
            if divergence is not None and not divergence.near_tie:
                return (
                    f"the continuations of prompt {number} diverge at step {divergence.step}, which is not a "
                    "near-tie"
                )
        return None

    @property
    def greedy_match(self) -> float | None:
        """Fraction of prompts whose greedy continuations are identical; None if there are none."""
        made = [result.continuation for result in self.prompts if result.continuation is not None]
        return sum(item.divergence is None for item in made) / len(made) if made else None

    def to_json(self) -> dict[str, Any]:
        """The keys of the documented contract first, then more."""
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
            "activations": asdict(self.activations) if self.activations else None,
            "layers": self.layers.to_json() if self.layers else None,
            "blocks": self.blocks.to_json() if self.blocks else None,
            "verdict": verdict(self),
            "fingerprint": self.fingerprint,
            "rows": [_row_json(result) for result in self.prompts],
        }


def verdict(report: ParityReport) -> str:
    """An interpretation of the numbers, in a sentence or two."""
    blocks = report.blocks
    if blocks is not None and not blocks.passed(report.min_cosine):
        return f"C++ and PyTorch disagree when they decode in blocks. {blocks.describe()}"
    if report.layers is None or report.layers.first is None:
        return _logits_verdict(report)
    found = report.layers.describe()
    finding = f"{found[0].upper()}{found[1:]}."
    if report.judged.cosine_min >= report.min_cosine and report.mistake is None:
        return f"A step is wrong although the logits agree: later steps cancel the error. {finding}"
    return f"{_logits_verdict(report)} {finding}"


def _logits_verdict(report: ParityReport) -> str:
    judged = report.judged
    threshold = report.min_cosine
    if report.passed:
        how = " with embeddings and rounding decisions aligned" if report.judged_aligned else ""
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
        # Such a large difference suggests a different model rather than a mistake in this one.
        unrelated = judged.cosine_mean < UNRELATED_COSINE
        ask = " Was the file converted from this checkpoint?" if unrelated else ""
        return f"C++ and PyTorch disagree: {missed}; {report.aligned.describe()}.{ask}"
    if report.aligned.agreement.cosine_min >= threshold and not report.judged_aligned:
        return (
            f"No mistake, but below the threshold: {missed}; yet {report.aligned.describe()}. "
            "Leave out --plain to judge the aligned logits."
        )
    return f"C++ and PyTorch disagree: {missed}; {report.aligned.describe()}."


def _perplexity_json(found: Perplexities | None) -> dict[str, Any] | None:
    return {**asdict(found), "relative_difference": found.relative_difference} if found else None


def _row_json(result: PromptResult) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": result.prompt, "tokens": result.tokens, **asdict(result.agreement)}
    del row["positions"]
    if result.continuation is not None:
        found = result.continuation.divergence
        row["greedy"] = {
            "identical": found is None,
            "common_tokens": result.continuation.tokens,
            "parting": {**asdict(found), "near_tie": found.near_tie} if found else None,
        }
    return row
