"""The result of :func:`bitexport.embed.embed`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Embedding:
    """The embedding of one text.

    Attributes:
        text: the text, without the prompt.
        tokens: its number of tokens, with the prompt and special tokens.
        truncated: whether it was cut to the model's context.
        vector: float32 ``[dimension]``.
    """

    text: str
    tokens: int
    truncated: bool
    vector: npt.NDArray[np.float32]

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        return {
            "text": self.text,
            "tokens": self.tokens,
            "truncated": self.truncated,
            "embedding": self.vector.tolist(),
        }


@dataclass(frozen=True)
class EmbedReport:
    """The embeddings of several texts, in the order in which they were given.

    Attributes:
        pooling: ``mean``, ``cls`` or ``last``.
        normalized: whether the vectors were divided by their L2 norms.
        prompt: the text that was put in front of every text; empty if there was none.
    """

    embeddings: list[Embedding]
    dimension: int
    pooling: str
    normalized: bool
    prompt: str
    tier: str

    def array(self) -> npt.NDArray[np.float32]:
        """All vectors: float32 ``[texts, dimension]``."""
        return np.stack([found.vector for found in self.embeddings])

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object, without ``schema``."""
        return {
            "texts": len(self.embeddings),
            "dimension": self.dimension,
            "pooling": self.pooling,
            "normalized": self.normalized,
            "prompt": self.prompt,
            "tier": self.tier,
            "rows": [found.to_json() for found in self.embeddings],
        }
