"""Does C++ compute what PyTorch computes? Compares logits at every position, on the user's own files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bitexport.blocks import BlockRule
from bitexport.checkpoint import open_checkpoint
from bitexport.checkpoint.packings import quantization_config
from bitexport.convert.source import FLOAT_PACKING, PACKING_KEY
from bitexport.errors import GGUFError, UsageError
from bitexport.gguf.diffusion_settings import diffusion_of
from bitexport.gguf.embeddings import Embeddings, read_embeddings
from bitexport.gguf.fingerprint import fingerprint
from bitexport.gguf.reader import GGUFFile, read_gguf
from bitexport.metrics.likelihood import WINDOW, Perplexities, perplexities
from bitexport.metrics.logits import LogitComparison, compare_logits, join, summarize
from bitexport.parity.activations import activation_grids
from bitexport.parity.aligned import Alignment, compare_aligned, noise_floor, stored_weights
from bitexport.parity.blocks import BlockParity, compare_blocks
from bitexport.parity.details import Details, LogitDetails, OnLogits
from bitexport.parity.greedy import Continuation, continue_both
from bitexport.parity.layers.compare import compare_layers
from bitexport.parity.report import MIN_COSINE, ParityReport, PromptResult
from bitexport.parity.tokenizer import check_same_tokens
from bitexport.progress import Progress, ProgressEvent, ignore
from bitexport.reference import Reference, load_reference
from bitexport.reference.alignment import aligned_rounding
from bitexport.reference.embeddings import replaced_embeddings
from bitexport.runtime.block_session import BlockSession
from bitexport.runtime.limits import check_text
from bitexport.runtime.session import Session
from bitexport.runtime.trace import Tracer
from bitexport.text.prompts import built_in_prompts

__all__ = ["parity"]


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
        gguf: the file converted from it, run by our libllama with a float32 key-value cache.
        prompts: texts; the built-in ones if None.
        tokens: number of greedy tokens to continue each prompt with, on both sides.
        min_cosine: threshold for the smallest cosine of any position.
        align: judge with embeddings and rounding decisions aligned, see
            :class:`bitexport.parity.aligned.Alignment`. Otherwise they are aligned only to explain positions
            below ``min_cosine``.
        measure_noise_floor: also compare PyTorch with itself under the smallest disturbance.
        text: also compare the perplexity of this text.
        layers: also compare every step of every block, see :mod:`bitexport.parity.layers.compare`.
        details: keep what :func:`bitexport.parity.page.page` shows.
        threads: for C++; 0 uses one per core.
        progress: called for every prompt.

    Raises:
        TokenizerError: the two sides tokenize a prompt differently.
        UsageError: a prompt is empty, or with ``tokens`` exceeds the model's context; or all fill it, and the
            model decodes in blocks; or ``min_cosine`` is not a number from -1 to 1; or the file is a float
            model and the checkpoint ternary.
        CheckpointError, GGUFError, NativeLibraryError: a side cannot be loaded.
    """
    if not -1 <= min_cosine <= 1:  # NaN is not
        raise UsageError(f"min_cosine is {min_cosine}; expected a number from -1 to 1")
    texts = _texts(prompts)
    file = read_gguf(Path(gguf))  # a missing or damaged file fails before PyTorch loads gigabytes
    progress(ProgressEvent(0, len(texts), "prompts", "loading"))
    reference = _load(checkpoint, file)
    ids_of = [_prompt_ids(reference, number, prompt, tokens) for number, prompt in enumerate(texts, start=1)]
    _check_room_for_blocks(file, reference, ids_of)
    window = min(WINDOW, reference.n_ctx)
    n_ctx = max(max(map(len, ids_of)) + tokens, window if text is not None else 0)
    tracer = Tracer() if layers else None

    with Session(gguf, n_ctx=n_ctx, n_threads=threads, tracer=tracer) as session:
        _check_same_inputs(reference, session, texts, ids_of)
        run = _Run(reference, session, ids_of, tokens, progress)
        plain_details, aligned_details = LogitDetails(reference.text), LogitDetails(reference.text)
        comparisons, continuations = run.plain(not align, plain_details.add if details else None)
        plain = summarize(join(comparisons))
        alignment = None
        if align:
            alignment, continuations = run.aligned(tokens, aligned_details.add if details else None)
        elif not plain.cosine_min >= min_cosine:  # there is a difference to explain
            alignment, _ = run.aligned(0)
        judged_details = aligned_details if align else plain_details
        return ParityReport(
            prompts=[
                PromptResult(prompt, len(ids), summarize(comparison), continuation if tokens else None)
                for prompt, ids, comparison, continuation in zip(
                    texts, ids_of, comparisons, continuations, strict=True
                )
            ],
            plain=plain,
            aligned=alignment,
            noise_floor=noise_floor(reference, ids_of, progress) if measure_noise_floor else None,
            perplexity=None if text is None else run.perplexity(text, window, align),
            min_cosine=min_cosine,
            judged_aligned=align,
            greedy_tokens=tokens,
            tier=session.tier,
            layers=None
            if tracer is None
            else compare_layers(
                reference, session, tracer, run.embeddings, ids_of, align=align, progress=progress
            ),
            details=Details(judged_details, plain_details) if details else None,
            activations=activation_grids(reference, gguf),
            fingerprint=fingerprint(gguf),
            blocks=_blocks(run, gguf, tokens, threads),
        )


def _load(checkpoint: str | os.PathLike[str], file: GGUFFile) -> Reference:
    """PyTorch's side: as a float model if the file is one, otherwise as a ternary one.

    The checkpoint does not say which: master weights need not have a quantization_config.
    """
    architecture = str(file.metadata.get("general.architecture"))
    all_float = file.metadata.get(PACKING_KEY) == FLOAT_PACKING
    if all_float and quantization_config(open_checkpoint(Path(checkpoint)).config) is not None:
        raise UsageError(
            f"{file.path} is a float model, as convert --float makes it, and {checkpoint} is ternary; "
            "expected two forms of one model: convert that checkpoint, or give the float one"
        )
    return load_reference(checkpoint, architecture, all_float=all_float)


def _blocks(run: _Run, gguf: str | os.PathLike[str], tokens: int, threads: int) -> BlockParity | None:
    """Decode in blocks, too, if the file is made for it: ``tokens`` of each prompt, at least a block.

    Prompts that fill the context are left out.
    """
    settings = diffusion_of(read_gguf(os.fspath(gguf)))
    if settings is None:
        return None
    size = settings.block_size
    tokens = max(tokens, size)
    ids_of = [ids for ids in run.ids_of if len(ids) < run.reference.n_ctx]
    whole_blocks = -(-(max(map(len, ids_of)) + tokens) // size) * size
    n_ctx = min(whole_blocks, run.reference.n_ctx)
    with BlockSession(gguf, n_ctx=n_ctx, n_threads=threads) as session:
        return compare_blocks(
            run.reference, session, run.embeddings, ids_of, tokens, BlockRule("greedy"), run.progress
        )


@dataclass
class _Run:
    """Both sides, loaded, and the token ids of every prompt."""

    reference: Reference
    session: Session
    ids_of: list[list[int]]
    tokens: int
    progress: Progress

    @cached_property
    def embeddings(self) -> Embeddings:
        """Those of the file."""
        return read_embeddings(self.session.path)

    def plain(
        self, continue_greedily: bool, on_logits: OnLogits | None
    ) -> tuple[list[LogitComparison], list[Continuation]]:
        """Compare both sides unmodified; the continuations are empty unless asked for."""
        comparisons: list[LogitComparison] = []
        continuations: list[Continuation] = []
        for index, ids in enumerate(self.ids_of):
            self.progress(ProgressEvent(index, len(self.ids_of), "prompts", "comparing logits"))
            python, cpp = self.reference.logits(ids), self.session.logits(ids)
            comparisons.append(compare_logits(python, cpp))
            if on_logits is not None:
                on_logits(index, ids, python, cpp)
            if continue_greedily:
                continuations.append(continue_both(self.reference, self.session, ids, self.tokens))
        return comparisons, continuations

    def aligned(self, tokens: int, on_logits: OnLogits | None = None) -> tuple[Alignment, list[Continuation]]:
        """See :func:`compare_aligned`."""
        return compare_aligned(
            self.reference, self.session, self.embeddings, self.ids_of, tokens, self.progress, on_logits
        )

    def perplexity(self, text: str, window: int, align: bool) -> Perplexities:
        """With ``align``, PyTorch uses the file's embeddings and grids, so that these are not judged."""
        ids = self.reference.tokenize(text)
        check_same_tokens(self.reference, self.session, "the text", text, ids)
        with ExitStack() as stack:
            if align:
                stack.enter_context(replaced_embeddings(self.reference.model, self.embeddings))
                stored = stored_weights(self.reference, self.session.path)
                stack.enter_context(aligned_rounding(self.reference.ternary_layers(), {}, stored))
            return perplexities(self.reference, self.session, ids, window, self.progress)


def _texts(prompts: Sequence[str] | None) -> list[str]:
    texts = list(prompts) if prompts is not None else built_in_prompts()
    if not texts:
        raise UsageError("there are no prompts; give at least one")
    return texts


def _prompt_ids(reference: Reference, number: int, prompt: str, tokens: int) -> list[int]:
    check_text(f"prompt {number}", prompt)
    ids = reference.tokenize(prompt)
    if not ids:
        raise UsageError(f"prompt {number} has no tokens; give a text that is not empty")
    if len(ids) + tokens > reference.n_ctx:
        raise UsageError(
            f"prompt {number} has {len(ids)} tokens, which with {tokens} more exceed the model's context "
            f"of {reference.n_ctx}; shorten it or give a smaller --tokens"
        )
    return ids


def _check_room_for_blocks(file: GGUFFile, reference: Reference, ids_of: Sequence[Sequence[int]]) -> None:
    if diffusion_of(file) is not None and min(map(len, ids_of)) >= reference.n_ctx:
        raise UsageError(
            f"every prompt fills the model's context of {reference.n_ctx} tokens, so that none can be "
            "continued in blocks; add a shorter one"
        )


def _check_same_inputs(
    reference: Reference, session: Session, texts: Sequence[str], ids_of: Sequence[Sequence[int]]
) -> None:
    if reference.n_vocab != session.n_vocab:
        raise GGUFError(
            f"{session.path} has a vocabulary of {session.n_vocab} tokens, the checkpoint of "
            f"{reference.n_vocab}; was it converted from this checkpoint?"
        )
    for number, (prompt, ids) in enumerate(zip(texts, ids_of, strict=True), start=1):
        check_same_tokens(reference, session, f"prompt {number}", prompt, ids)
