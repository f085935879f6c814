"""Does C++ compute what PyTorch computes? Logits compared at every position, on the user's own files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from bitexport.comparison import Agreement, Comparison, compare, join, summarize
from bitexport.errors import GGUFError, TokenizerError, UsageError
from bitexport.gguf.embeddings import read_embeddings
from bitexport.greedy import Continuation, continue_in_step
from bitexport.perplexity import WINDOW, Perplexities, perplexities
from bitexport.progress import Progress, ProgressEvent, ignore
from bitexport.prompts import built_in_prompts
from bitexport.reference import Reference, load_reference
from bitexport.reference.embeddings import replaced_embeddings
from bitexport.rounding import Alignment, compare_aligned, noise_floor
from bitexport.runtime.limits import check_text
from bitexport.runtime.model import Session

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
        return same_perplexity and self.judged.cosine_min >= self.min_cosine and self.mistake is None

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
            "verdict": verdict(self),
            "rows": [_row_json(result) for result in self.prompts],
        }


def parity(
    checkpoint: str | os.PathLike[str],
    gguf: str | os.PathLike[str],
    prompts: Sequence[str] | None = None,
    *,
    tokens: int = 0,
    min_cosine: float = MIN_COSINE,
    align: bool = True,
    measure_noise_floor: bool = False,
    text: str | None = None,
    threads: int = 0,
    progress: Progress = ignore,
) -> ParityReport:
    """Run prompts through PyTorch and through C++ and compare.

    Args:
        checkpoint: folder of the checkpoint, run by transformers in float32.
        gguf: the file made of it, run by our libllama with a float32 key-value cache.
        prompts: texts; the built-in ones when None.
        tokens: greedy tokens to continue each prompt with on both sides.
        min_cosine: what the smallest cosine of any position has to reach.
        align: judge with embeddings and rounding decisions aligned, see
            :class:`bitexport.rounding.Alignment`. Otherwise they are aligned only to explain positions
            below ``min_cosine``.
        measure_noise_floor: also compare PyTorch with itself under the smallest disturbance.
        text: compare the perplexity of this text as well.
        threads: for C++; 0 takes one a core.
        progress: told of every prompt.

    Raises:
        TokenizerError: the sides disagree on the tokens of a prompt.
        UsageError: a prompt is empty, or with ``tokens`` longer than the model's context.
        CheckpointError, GGUFError, NativeLibraryError: a side cannot be loaded.
    """
    texts = list(prompts) if prompts is not None else built_in_prompts()
    if not texts:
        raise UsageError("there are no prompts; give at least one")
    progress(ProgressEvent(0, len(texts), "prompts", "loading"))
    reference = load_reference(checkpoint)
    ids_of = [_python_ids(reference, index, prompt, tokens) for index, prompt in enumerate(texts)]
    window = min(WINDOW, reference.n_ctx)
    longest = max(len(ids) for ids in ids_of) + tokens
    n_ctx = max(longest, window if text is not None else 0)
    with Session(gguf, n_ctx=n_ctx, n_threads=threads) as session:
        _check_same_vocabulary(reference, session)
        for index, (prompt, ids) in enumerate(zip(texts, ids_of, strict=True)):
            check_same_tokens(reference, session, f"prompt {index + 1}", prompt, ids)

        comparisons: list[Comparison] = []
        continuations: list[Continuation] = []
        for index, ids in enumerate(ids_of):
            progress(ProgressEvent(index, len(texts), "prompts", "comparing logits"))
            comparisons.append(compare(reference.logits(ids), session.logits(ids)))
            if not align:
                continuations.append(continue_in_step(reference, session, ids, tokens))

        plain = summarize(join(comparisons))
        aligned = None
        if align:
            aligned, continuations = compare_aligned(reference, session, ids_of, tokens, progress)
        elif not plain.cosine_min >= min_cosine:  # there is something to explain
            aligned, _ = compare_aligned(reference, session, ids_of, progress=progress)
        return ParityReport(
            prompts=[
                PromptResult(prompt, len(ids), summarize(comparison), continuation if tokens else None)
                for prompt, ids, comparison, continuation in zip(
                    texts, ids_of, comparisons, continuations, strict=True
                )
            ],
            plain=plain,
            aligned=aligned,
            noise_floor=noise_floor(reference, ids_of, progress) if measure_noise_floor else None,
            perplexity=_perplexity(reference, session, text, window, align, progress),
            min_cosine=min_cosine,
            judged_aligned=align,
            greedy_tokens=tokens,
            tier=session.tier,
        )


def check_same_tokens(
    reference: Reference, session: Session, what: str, text: str, python_ids: Sequence[int]
) -> None:
    """Raise TokenizerError, naming the first token that differs, unless both sides give the same ids."""
    cpp_ids = session.tokenize(text)
    if list(python_ids) == cpp_ids:
        return
    pairs = zip(python_ids, cpp_ids, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(python_ids), len(cpp_ids)))

    def name(ids: Sequence[int]) -> str:
        return f"{ids[at]} ({reference.text([ids[at]])!r})" if at < len(ids) else "absent"

    raise TokenizerError(
        f"{what} is tokenized differently: token {at} is {name(python_ids)} in Python and {name(cpp_ids)} "
        "in C++; the GGUF has another tokenizer or pre-tokenizer: convert the checkpoint again"
    )


def verdict(report: ParityReport) -> str:
    """What the numbers mean, in a sentence."""
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


def _python_ids(reference: Reference, index: int, prompt: str, tokens: int) -> list[int]:
    check_text(f"prompt {index + 1}", prompt)
    ids = reference.tokenize(prompt)
    if not ids:
        raise UsageError(f"prompt {index + 1} has no tokens; give a text that is not empty")
    if len(ids) + tokens > reference.n_ctx:
        raise UsageError(
            f"prompt {index + 1} has {len(ids)} tokens, which with {tokens} more exceed the model's context "
            f"of {reference.n_ctx}; shorten it or give a smaller --tokens"
        )
    return ids


def _check_same_vocabulary(reference: Reference, session: Session) -> None:
    if reference.n_vocab != session.n_vocab:
        raise GGUFError(
            f"{session.path} has a vocabulary of {session.n_vocab} tokens, the checkpoint of "
            f"{reference.n_vocab}; is it made from this checkpoint?"
        )


def _perplexity(
    reference: Reference, session: Session, text: str | None, window: int, align: bool, progress: Progress
) -> Perplexities | None:
    """With ``align`` PyTorch has the file's embeddings: what their type costs is not judged."""
    if text is None:
        return None
    ids = reference.tokenize(text)
    check_same_tokens(reference, session, "the text", text, ids)
    with ExitStack() as stack:
        if align:
            embeddings = read_embeddings(session.path)
            stack.enter_context(replaced_embeddings(reference.model, embeddings))
        return perplexities(reference, session, ids, window, progress)


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
