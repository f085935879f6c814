"""How far two sets of logits differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

#: Positions processed at once: in float64, this many rows of a 128k vocabulary take 32 MiB.
CHUNK_ROWS = 32


@dataclass(frozen=True, slots=True)
class LogitComparison:
    """Two logit arrays compared position by position; every array has shape ``[T]``.

    Attributes:
        cosine: float64, cosine of the angle between the two rows; NaN where a row is zero or not finite.
        same_top1: bool, whether both rows have their largest logit at the same token.
        kl: float64, Kullback-Leibler divergence of the second distribution from the first, in nats:
            sum of p (log p - log q), with p and q the softmax of the two rows.
        max_abs_diff: float64, largest absolute difference between two logits.
        relative_error: float64, L2 norm of the difference divided by the L2 norm of the first row. Unlike the
            cosine, it shows a wrong magnitude.
    """

    cosine: npt.NDArray[np.float64]
    same_top1: npt.NDArray[np.bool_]
    kl: npt.NDArray[np.float64]
    max_abs_diff: npt.NDArray[np.float64]
    relative_error: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Summary of a :class:`LogitComparison`.

    Attributes:
        positions: number of positions compared.
        cosine_min, cosine_mean: over the positions' cosines.
        top1_agreement: fraction of positions where both sides have the same most likely token.
        kl_mean: mean divergence KL(Python || C++), in nats.
        max_abs_diff: largest difference of any logit at any position.
        relative_error_max: largest relative error of any position.
    """

    positions: int
    cosine_min: float
    cosine_mean: float
    top1_agreement: float
    kl_mean: float
    max_abs_diff: float
    relative_error_max: float


def compare_logits(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> LogitComparison:
    """Compare two logit arrays of shape ``[T, V]``, in float64."""
    chunks = [
        _compare_chunk(
            first[begin : begin + CHUNK_ROWS].astype(np.float64),
            second[begin : begin + CHUNK_ROWS].astype(np.float64),
        )
        for begin in range(0, len(first), CHUNK_ROWS)
    ]
    return join(chunks)


def join(comparisons: list[LogitComparison]) -> LogitComparison:
    """Concatenate comparisons, in order."""
    return LogitComparison(
        cosine=np.concatenate([part.cosine for part in comparisons]),
        same_top1=np.concatenate([part.same_top1 for part in comparisons]),
        kl=np.concatenate([part.kl for part in comparisons]),
        max_abs_diff=np.concatenate([part.max_abs_diff for part in comparisons]),
        relative_error=np.concatenate([part.relative_error for part in comparisons]),
    )


def summarize(comparison: LogitComparison) -> Agreement:
    """The summary that reports show. A NaN at any position makes the minimum and the means NaN."""
    return Agreement(
        positions=len(comparison.cosine),
        cosine_min=float(comparison.cosine.min()),
        cosine_mean=float(comparison.cosine.mean()),
        top1_agreement=float(comparison.same_top1.mean()),
        kl_mean=float(comparison.kl.mean()),
        max_abs_diff=float(comparison.max_abs_diff.max()),
        relative_error_max=float(comparison.relative_error.max()),
    )


def log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Log-probabilities along the last axis: x - log(sum(exp(x))), shifted by max(x) against overflow."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))  # type: ignore[no-any-return]


def _compare_chunk(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> LogitComparison:
    with np.errstate(invalid="ignore", divide="ignore"):
        norm = np.linalg.norm(first, axis=-1)
        p, q = log_softmax(first), log_softmax(second)
        return LogitComparison(
            cosine=(first * second).sum(axis=-1) / (norm * np.linalg.norm(second, axis=-1)),
            same_top1=first.argmax(axis=-1) == second.argmax(axis=-1),
            kl=(np.exp(p) * (p - q)).sum(axis=-1),
            max_abs_diff=np.abs(first - second).max(axis=-1),
            relative_error=np.linalg.norm(first - second, axis=-1) / norm,
        )
