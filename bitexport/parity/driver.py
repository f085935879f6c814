"""Does C++ compute what PyTorch computes? Logits compared at every position, on the user's own files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from bitexport.errors import GGUFError, TokenizerError, UsageError
from bitexport.gguf.embeddings import Embeddings, read_embeddings
from bitexport.gguf.reader import read_gguf
from bitexport.metrics.likelihood import WINDOW, Perplexities, perplexities
from bitexport.metrics.logits import LogitComparison, compare_logits, join, summarize
from bitexport.parity.aligned import compare_aligned, noise_floor
from bitexport.parity.details import Collector, Details
from bitexport.parity.greedy import Continuation, continue_in_step
from bitexport.parity.layers.compare import compare_layers
from bitexport.parity.report import MIN_COSINE, ParityReport, PromptResult, verdict
from bitexport.progress import Progress, ProgressEvent, ignore
from bitexport.reference import Reference, load_reference
from bitexport.reference.embeddings import replaced_embeddings
from bitexport.runtime.limits import check_text
from bitexport.runtime.model import Session
from bitexport.runtime.trace import Tracer
from bitexport.text.prompts import built_in_prompts

__all__ = ["MIN_COSINE", "ParityReport", "PromptResult", "check_same_tokens", "parity", "verdict"]


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
    layers: bool = False,
    details: bool = False,
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
            :class:`bitexport.parity.aligned.Alignment`. Otherwise they are aligned only to explain positions
            below ``min_cosine``.
        measure_noise_floor: also compare PyTorch with itself under the smallest disturbance.
        text: compare the perplexity of this text as well.
        layers: compare every step of every block as well, see :mod:`bitexport.parity.layers.compare`.
        details: keep what :func:`bitexport.parity.page.page` shows.
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
    read_gguf(Path(gguf))  # a file that is missing or damaged shows before PyTorch loads gigabytes
    progress(ProgressEvent(0, len(texts), "prompts", "loading"))
    reference = load_reference(checkpoint)
    ids_of = [_python_ids(reference, index, prompt, tokens) for index, prompt in enumerate(texts)]
    window = min(WINDOW, reference.n_ctx)
    longest = max(len(ids) for ids in ids_of) + tokens
    n_ctx = max(longest, window if text is not None else 0)
    tracer = Tracer() if layers else None

    @cache
    def embeddings() -> Embeddings:
        return read_embeddings(gguf)

    with Session(gguf, n_ctx=n_ctx, n_threads=threads, tracer=tracer) as session:
        _check_same_vocabulary(reference, session)
        for index, (prompt, ids) in enumerate(zip(texts, ids_of, strict=True)):
            check_same_tokens(reference, session, f"prompt {index + 1}", prompt, ids)

        plain_seen, aligned_seen = Collector(reference.text), Collector(reference.text)
        comparisons: list[LogitComparison] = []
        continuations: list[Continuation] = []
        for index, ids in enumerate(ids_of):
            progress(ProgressEvent(index, len(texts), "prompts", "comparing logits"))
            ours, theirs = reference.logits(ids), session.logits(ids)
            comparisons.append(compare_logits(ours, theirs))
            if details:
                plain_seen.see(index, ids, ours, theirs)
            if not align:
                continuations.append(continue_in_step(reference, session, ids, tokens))

        plain = summarize(join(comparisons))
        aligned = None
        if align:
            aligned, continuations = compare_aligned(
                reference,
                session,
                embeddings(),
                ids_of,
                tokens,
                progress,
                aligned_seen.see if details else None,
            )
        elif not plain.cosine_min >= min_cosine:  # there is something to explain
            aligned, _ = compare_aligned(reference, session, embeddings(), ids_of, progress=progress)
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
            perplexity=_perplexity(
                reference, session, text, window, embeddings() if align else None, progress
            ),
            min_cosine=min_cosine,
            judged_aligned=align,
            greedy_tokens=tokens,
            tier=session.tier,
            layers=None
            if tracer is None
            else compare_layers(
                reference, session, tracer, embeddings(), ids_of, align=align, progress=progress
            ),
            details=Details(aligned_seen if align else plain_seen, plain_seen) if details else None,
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
    reference: Reference,
    session: Session,
    text: str | None,
    window: int,
    embeddings: Embeddings | None,
    progress: Progress,
) -> Perplexities | None:
    """With ``embeddings`` PyTorch has the file's: what their type costs is not judged."""
    if text is None:
        return None
    ids = reference.tokenize(text)
    check_same_tokens(reference, session, "the text", text, ids)
    with ExitStack() as stack:
        if embeddings is not None:
            stack.enter_context(replaced_embeddings(reference.model, embeddings))
        return perplexities(reference, session, ids, window, progress)
