"""Does C++ compute an embedding model's vectors as PyTorch does? Those of tokens, and the pooled ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitexport.checkpoint.sentence_transformers import EmbeddingSettings
from bitexport.errors import GGUFError, UnsupportedError, UsageError
from bitexport.gguf.embedding_settings import settings_of
from bitexport.gguf.embeddings import read_embeddings
from bitexport.gguf.fingerprint import fingerprint
from bitexport.gguf.reader import read_gguf
from bitexport.metrics.vectors import VectorAgreement, compare_vectors, pool
from bitexport.parity.aligned import stored_weights
from bitexport.parity.embedding_report import AlignedVectors, EmbeddingParityReport, EmbeddingResult
from bitexport.parity.report import MIN_COSINE
from bitexport.parity.tokenizer import check_same_tokens
from bitexport.progress import Progress, ProgressEvent, ignore
from bitexport.reference import Reference, load_reference
from bitexport.reference.alignment import Decisions, aligned_rounding
from bitexport.reference.embeddings import replaced_embeddings, unfaithful_row
from bitexport.reference.float_layers import rounded_float_layers
from bitexport.reference.token_vectors import token_vectors
from bitexport.runtime.embedding import EmbeddingSession
from bitexport.runtime.limits import check_text
from bitexport.runtime.observe import record_activations
from bitexport.text.prompts import built_in_prompts

Vectors = npt.NDArray[np.float32]


def is_embedding_model(gguf: str | os.PathLike[str]) -> bool:
    """Whether a file calls itself an embedding model.

    Raises:
        GGUFError: it is missing or damaged.
    """
    return settings_of(read_gguf(Path(gguf))) is not None


def embedding_parity(
    checkpoint: str | os.PathLike[str],
    gguf: str | os.PathLike[str],
    prompts: Sequence[str] | None = None,
    *,
    min_cosine: float = MIN_COSINE,
    align: bool = True,
    threads: int = 0,
    progress: Progress = ignore,
) -> EmbeddingParityReport:
    """Run texts through PyTorch and through C++ and compare their vectors.

    Args: as for :func:`bitexport.parity.parity`.

    Raises:
        TokenizerError: the two sides tokenize a text differently.
        UsageError: a text is empty or longer than the context, or ``min_cosine`` is not from -1 to 1.
        CheckpointError, GGUFError, NativeLibraryError: a side cannot be loaded.
    """
    if not -1 <= min_cosine <= 1:  # NaN is not
        raise UsageError(f"min_cosine is {min_cosine}; expected a number from -1 to 1")
    texts = list(prompts) if prompts is not None else built_in_prompts()
    if not texts:
        raise UsageError("there are no prompts; give at least one")
    settings = settings_of(read_gguf(Path(gguf)))
    if settings is None:
        raise GGUFError(
            f"{gguf} is not an embedding model: it has no pooling_type; convert the checkpoint again"
        )
    progress(ProgressEvent(0, len(texts), "prompts", "loading"))
    reference = load_reference(checkpoint)
    ids_of = [_ids(reference, number, text) for number, text in enumerate(texts, start=1)]
    longest = max(map(len, ids_of))
    # one session after the other: each has the model's memory
    with EmbeddingSession(
        gguf, pooling=settings.pooling, longest=longest, batch_texts=1, n_threads=threads
    ) as pooling:
        for number, (text, ids) in enumerate(zip(texts, ids_of, strict=True), start=1):
            check_same_tokens(reference, pooling, f"prompt {number}", text, ids)
        pooled = [vector for ids in ids_of for _, vector in pooling.text_vectors([ids])]
    with EmbeddingSession(gguf, pooling=None, longest=longest, batch_texts=1, n_threads=threads) as session:
        run = _Run(reference, session, settings, ids_of, pooled, progress)
        plain, rows = run.plain(texts)
        aligned = run.aligned() if align else None
        if not align and not _cosine(plain) >= min_cosine:  # there is a difference to explain, if possible
            with suppress(UnsupportedError):
                aligned = run.aligned()
        return EmbeddingParityReport(
            prompts=rows,
            tokens=plain[0],
            pooled=plain[1],
            aligned=aligned,
            settings=settings,
            min_cosine=min_cosine,
            judged_aligned=align,
            tier=session.tier,
            fingerprint=fingerprint(gguf),
        )


@dataclass
class _Run:
    """Both sides, loaded, the token ids of every text, and C++'s pooled vectors."""

    reference: Reference
    session: EmbeddingSession
    settings: EmbeddingSettings
    ids_of: list[list[int]]
    pooled: list[Vectors]
    progress: Progress

    def plain(
        self, texts: Sequence[str]
    ) -> tuple[tuple[VectorAgreement, VectorAgreement], list[EmbeddingResult]]:
        """Compare both sides unmodified."""
        python, cpp, rows = [], [], []
        for index, ids in enumerate(self.ids_of):
            self.progress(ProgressEvent(index, len(self.ids_of), "prompts", "comparing vectors"))
            python.append(token_vectors(self.reference, ids))
            cpp.append(self.session.token_vectors(ids))
            rows.append(
                EmbeddingResult(
                    texts[index],
                    len(ids),
                    compare_vectors(python[-1], cpp[-1]),
                    self._compare_pooled(python[-1:], [self.pooled[index]]),
                )
            )
        whole = compare_vectors(np.concatenate(python), np.concatenate(cpp))
        return (whole, self._compare_pooled(python, self.pooled)), rows

    def aligned(self) -> AlignedVectors:
        """Compare with the file's embeddings and C++'s rounding decisions, see :mod:`.aligned`."""
        reference, path = self.reference, self.session.path
        embeddings = read_embeddings(path)
        unfaithful = unfaithful_row(reference.model, embeddings)
        layers, stored = reference.ternary_layers(), stored_weights(reference, path)
        python, cpp = [], []
        runs: list[Decisions] = []
        with (
            replaced_embeddings(reference.model, embeddings),
            rounded_float_layers(reference.modules(), path),
        ):
            for index, ids in enumerate(self.ids_of):
                self.progress(ProgressEvent(index, len(self.ids_of), "prompts", "aligning"))
                with record_activations() as recorded:
                    cpp.append(self.session.token_vectors(ids))
                with aligned_rounding(layers, recorded, stored) as decisions:
                    python.append(token_vectors(reference, ids))
                runs.append(decisions)
        total = Decisions.of_all(runs)
        return AlignedVectors(
            tokens=compare_vectors(np.concatenate(python), np.concatenate(cpp)),
            pooled=self._compare_pooled(python, self.pooled),
            compared=total.compared,
            adopted=total.adopted,
            farthest_steps=total.farthest,
            unexplained=total.unexplained,
            first_unexplained=total.first_unexplained,
            unfaithful=unfaithful,
        )

    def _compare_pooled(self, python: Sequence[Vectors], cpp: Sequence[Vectors]) -> VectorAgreement:
        """PyTorch's token vectors, pooled here, against what libllama pooled."""
        pooled = np.stack([pool(vectors, self.settings.pooling) for vectors in python])
        return compare_vectors(pooled, np.stack(cpp))


def _cosine(plain: tuple[VectorAgreement, VectorAgreement]) -> float:
    return min(found.cosine_min for found in plain)


def _ids(reference: Reference, number: int, text: str) -> list[int]:
    check_text(f"prompt {number}", text)
    ids = reference.tokenize(text)
    if not ids:
        raise UsageError(f"prompt {number} has no tokens; give a text that is not empty")
    if len(ids) > reference.n_ctx:
        raise UsageError(
            f"prompt {number} has {len(ids)} tokens, more than the model's context of {reference.n_ctx}; "
            "shorten it"
        )
    return ids
