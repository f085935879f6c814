"""The result of parity on an embedding model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bitexport.checkpoint.sentence_transformers import EmbeddingSettings
from bitexport.metrics.vectors import VectorAgreement
from bitexport.parity.report import MAX_RELATIVE_ERROR


@dataclass(frozen=True, slots=True)
class EmbeddingResult:
    """The result of one text, both sides unmodified.

    Attributes:
        prompt: the text.
        tokens: its number of tokens.
        vectors: agreement of the vectors of its tokens.
        pooled: agreement of its embedding.
    """

    prompt: str
    tokens: int
    vectors: VectorAgreement
    pooled: VectorAgreement


@dataclass(frozen=True, slots=True)
class AlignedVectors:
    """Agreement with the file's embeddings and C++'s rounding; see :mod:`bitexport.parity.aligned`.

    Attributes:
        tokens, pooled: of the vectors of all tokens, and of the texts' embeddings.
        others: as in :class:`bitexport.parity.aligned.Alignment`.
    """

    tokens: VectorAgreement
    pooled: VectorAgreement
    compared: int
    adopted: int
    farthest_steps: float
    unexplained: int
    first_unexplained: str | None
    unfaithful: str | None

    @property
    def mistake(self) -> str | None:
        """A clause on what neither rounding nor quantized embeddings explain."""
        if self.unfaithful:
            return self.unfaithful
        if self.unexplained:
            return (
                f"{self.unexplained:,} of {self.compared:,} activations differ by more than rounding "
                f"explains, the first of them at the input of {self.first_unexplained}"
            )
        error = max(self.tokens.relative_error_max, self.pooled.relative_error_max)
        if not error <= MAX_RELATIVE_ERROR:
            return (
                f"aligned vectors differ by {error:.2%} of their L2 norm, more than {MAX_RELATIVE_ERROR:.2%}"
            )
        return None


@dataclass(frozen=True)
class EmbeddingParityReport:
    """The result of :func:`bitexport.parity.embedding.embedding_parity`.

    Attributes:
        prompts: one result per text.
        tokens, pooled: agreement over all tokens and over all texts, both sides unmodified.
        aligned: the same, aligned; None if it was not computed.
        settings: how the file pools.
        min_cosine: the threshold for every vector.
        judged_aligned: the threshold applies to ``aligned``.
        tier: the kernels that ran.
        fingerprint: of the file, see :func:`bitexport.gguf.fingerprint.fingerprint`.
    """

    prompts: list[EmbeddingResult]
    tokens: VectorAgreement
    pooled: VectorAgreement
    aligned: AlignedVectors | None
    settings: EmbeddingSettings
    min_cosine: float
    judged_aligned: bool
    tier: str
    fingerprint: str = ""

    @property
    def judged(self) -> tuple[VectorAgreement, VectorAgreement]:
        """The agreements that the threshold applies to: of the tokens and of the texts."""
        if self.judged_aligned and self.aligned:
            return self.aligned.tokens, self.aligned.pooled
        return self.tokens, self.pooled

    @property
    def passed(self) -> bool:
        """Whether every threshold is met. NaN never passes."""
        mistake = self.aligned.mistake if self.judged_aligned and self.aligned else None
        return mistake is None and all(found.cosine_min >= self.min_cosine for found in self.judged)

    def verdict(self) -> str:
        """An interpretation of the numbers, in a sentence."""
        tokens, pooled = self.judged
        how = " with embeddings and rounding decisions aligned" if self.judged_aligned else ""
        if self.passed:
            return (
                "C++ computes the vectors that PyTorch computes: cosine is at least "
                f"{pooled.cosine_min:.8f} for {_all(pooled.vectors, 'embedding')} "
                f"(pooling {self.settings.pooling}) and {tokens.cosine_min:.8f} for "
                f"{_all(tokens.vectors, 'token')}{how} (threshold {self.min_cosine:g})."
            )
        missed = [
            f"the cosine of {what} falls to {found.cosine_min:.8f}, below the threshold {self.min_cosine:g}"
            for what, found in (("an embedding", pooled), ("a token's vector", tokens))
            if not found.cosine_min >= self.min_cosine
        ]
        mistake = self.aligned.mistake if self.aligned else None
        return f"C++ and PyTorch disagree: {'; '.join([*missed, *([mistake] if mistake else [])])}."

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object, without ``schema``."""
        tokens, pooled = self.judged
        return {
            "prompts": len(self.prompts),
            "positions": tokens.vectors,
            "cosine_min": min(tokens.cosine_min, pooled.cosine_min),
            "token_cosine_min": tokens.cosine_min,
            "pooled_cosine_min": pooled.cosine_min,
            "passed": self.passed,
            "min_cosine": self.min_cosine,
            "judged": "aligned" if self.judged_aligned else "plain",
            "pooling": self.settings.pooling,
            "plain": {"tokens": asdict(self.tokens), "pooled": asdict(self.pooled)},
            "aligned": asdict(self.aligned) if self.aligned else None,
            "tier": self.tier,
            "verdict": self.verdict(),
            "fingerprint": self.fingerprint,
            "rows": [asdict(result) for result in self.prompts],
        }


def _all(count: int, what: str) -> str:
    return f"the {what}" if count == 1 else f"all {count:,} {what}s"
