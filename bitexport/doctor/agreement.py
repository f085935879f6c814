"""Do C++ and PyTorch agree? First on tokens, then on logits, by parity's criteria."""

from __future__ import annotations

from collections.abc import Sequence

from bitexport.doctor.samples import Sample
from bitexport.errors import TokenizerError, UnsupportedError
from bitexport.gguf.embeddings import read_embeddings
from bitexport.metrics.likelihood import token_losses
from bitexport.parity.aligned import compare_aligned
from bitexport.parity.report import MAX_RELATIVE_ERROR, MIN_COSINE
from bitexport.parity.tokenizer import check_same_tokens
from bitexport.reference import Reference
from bitexport.runtime.session import Session
from bitexport.tokenizer.hard_strings import HARD_STRINGS

#: The number of tokens compared of each kind of text.
COMPARED_TOKENS = 128

#: The largest relative difference of the loss if the file has a type whose rounding of activations is not
#: known, so that logits cannot be compared one by one.
MAX_LOSS_DIFFERENCE = 0.05


def tokenizer_difference(reference: Reference, session: Session, samples: Sequence[Sample]) -> str | None:
    """The first text that the two sides tokenize differently, as a clause; None if there is none."""
    texts = [(f"the prompt {sample.prompt!r}", sample.prompt) for sample in samples]
    texts += [(f"{text!r}", text) for text in HARD_STRINGS]
    for what, text in texts:
        try:
            check_same_tokens(reference, session, what, text, reference.tokenize(text))
        except TokenizerError as error:
            return str(error)
    return None


def logit_difference(reference: Reference, session: Session, samples: Sequence[Sample]) -> str | None:
    """How C++ differs from PyTorch by more than rounding explains, as a clause; None if it does not."""
    sequences = [list(sample.windows[0][:COMPARED_TOKENS]) for sample in samples]
    try:
        alignment, _ = compare_aligned(reference, session, read_embeddings(session.path), sequences)
    except UnsupportedError:
        return _loss_difference(reference, session, sequences)
    agreement = alignment.agreement
    if alignment.unfaithful or alignment.unexplained:
        return f"C++ and PyTorch disagree: {alignment.describe()}"
    if not agreement.cosine_min >= MIN_COSINE:
        return f"C++ and PyTorch disagree: the cosine of their logits falls to {agreement.cosine_min:.6f}"
    if not agreement.relative_error_max <= MAX_RELATIVE_ERROR:
        return (
            f"C++ and PyTorch disagree: their logits differ by {agreement.relative_error_max:.2%} of their "
            "norm"
        )
    return None


def _loss_difference(reference: Reference, session: Session, sequences: Sequence[list[int]]) -> str | None:
    python = sum(token_losses(reference.logits(ids), ids).sum() for ids in sequences)
    cpp = sum(token_losses(session.logits(ids), ids).sum() for ids in sequences)
    if abs(cpp - python) <= MAX_LOSS_DIFFERENCE * python:
        return None
    return f"C++ and PyTorch disagree: C++'s loss on the same text is {cpp / python:.3g} times PyTorch's"
