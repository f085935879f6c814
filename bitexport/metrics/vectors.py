"""Vectors of texts: pooling, and how far two sets of them differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class VectorAgreement:
    """The agreement of two sets of vectors.

    Attributes:
        vectors: how many were compared.
        cosine_min, cosine_mean: of the angles between two vectors; NaN if one is zero or not finite.
        relative_error_max: the largest L2 norm of a difference, divided by that of the first vector. Unlike
            the cosine, it shows a wrong magnitude.
    """

    vectors: int
    cosine_min: float
    cosine_mean: float
    relative_error_max: float


def pool(vectors: npt.NDArray[np.float32], pooling: str) -> npt.NDArray[np.float32]:
    """One vector of a text's token vectors.

    Args:
        vectors: float32 ``[T, width]``.
        pooling: ``mean``, ``cls`` (the first) or ``last``.

    Returns:
        float32 ``[width]``.
    """
    if pooling == "mean":
        mean: npt.NDArray[np.float32] = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
        return mean
    chosen: npt.NDArray[np.float32] = vectors[0 if pooling == "cls" else -1]
    return chosen


def compare_vectors(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> VectorAgreement:
    """Compare two arrays of vectors, each ``[n, width]``, in float64."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        norms = np.linalg.norm(a, axis=1)
        cosine = (a * b).sum(axis=1) / (norms * np.linalg.norm(b, axis=1))
        error = np.linalg.norm(a - b, axis=1) / norms
    return VectorAgreement(len(a), float(cosine.min()), float(cosine.mean()), float(error.max()))
