"""Does the model speak a language, and is it the tokenizer's? Asked of text that the model makes up itself.

A model that predicts a text badly may know nothing, or may know another language than the text is written in:
above all, the ids of another tokenizer. Left to itself, it shows which. It never sees the tokenizer while it
samples ids; if it learned from text, what it says depends on what came before; and if the tokenizer is its
own, decoding its ids and encoding them again gives mostly the same ids, since it has only seen texts that
were encoded. With another tokenizer the pieces come together by chance, no better than in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from bitexport.doctor.stages import entropy
from bitexport.metrics.logits import log_softmax
from bitexport.reference import Reference
from bitexport.reference.model import eager

SEQUENCES = 8
LENGTH = 48


@dataclass(frozen=True, slots=True)
class FreeSampling:
    """What free sampling at temperature 1 shows.

    Attributes:
        information: nats that a context tells of the next token: the entropy of the mean distribution less
            the mean entropy.
        entropy: mean entropy of the next token, in nats.
        distinct: how many different tokens were sampled, of :data:`SEQUENCES` x :data:`LENGTH`.
        repeated: the fraction of them that are the token before; a network of chance is often stuck.
        kept: the fraction of ids that decoding and encoding gives back.
        kept_shuffled: the same after the ids were shuffled, which is what chance gives.
    """

    information: float
    entropy: float
    distinct: int
    repeated: float
    kept: float
    kept_shuffled: float

    @property
    def skill(self) -> float:
        """The part of the entropy of its single tokens that context takes away."""
        total = self.information + self.entropy
        return self.information / total if total > 0 else 0.0


def sample_freely(reference: Reference, starts: Sequence[int]) -> FreeSampling:
    """Let the model talk: :data:`SEQUENCES` texts of :data:`LENGTH` tokens, from ``starts`` in turn."""
    rng = np.random.default_rng(0)
    columns = [np.resize(np.asarray(starts, dtype=np.int64), SEQUENCES)]
    mean = np.zeros(reference.n_vocab)
    entropies: list[float] = []
    cache = None
    with torch.inference_mode(), eager(), reference.threads():
        for _ in range(LENGTH):
            output = reference.model(
                input_ids=torch.from_numpy(columns[-1])[:, None], past_key_values=cache, use_cache=True
            )
            cache = output.past_key_values
            logs = log_softmax(output.logits[:, -1].double().numpy())
            chances = np.exp(logs)
            mean += chances.sum(axis=0)
            entropies += [entropy(row) for row in logs]
            columns.append(np.array([_draw(row, rng) for row in chances]))
    mean /= mean.sum()
    with np.errstate(divide="ignore"):
        mixed = entropy(np.log(mean))
    sampled = np.stack(columns[1:], axis=1)
    shuffled = rng.permutation(sampled.reshape(-1)).reshape(sampled.shape)
    return FreeSampling(
        information=mixed - float(np.mean(entropies)),
        entropy=float(np.mean(entropies)),
        distinct=len(np.unique(sampled)),
        repeated=float((sampled[:, 1:] == sampled[:, :-1]).mean()),
        kept=float(np.mean([_kept(reference, row) for row in sampled])),
        kept_shuffled=float(np.mean([_kept(reference, row) for row in shuffled])),
    )


def _draw(chances: npt.NDArray[np.float64], rng: np.random.Generator) -> int:
    at = int(np.searchsorted(np.cumsum(chances), rng.random() * chances.sum()))
    return min(at, len(chances) - 1)


def _kept(reference: Reference, ids: npt.NDArray[np.int64]) -> float:
    """The fraction of tokens whose two ends are where encoding puts them as well."""
    pieces = [reference.tokenizer.decode([int(token)]) for token in ids]
    text = reference.text([int(token) for token in ids])
    again = reference.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    theirs = _spans([reference.tokenizer.decode([token]) for token in again], again)
    ours = _spans(pieces, ids)
    return len(set(ours) & set(theirs)) / len(ids)


def _spans(pieces: Sequence[str], ids: Sequence[int] | npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    at = 0
    found = []
    for piece, token in zip(pieces, ids, strict=True):
        found.append((at, int(token)))
        at += len(piece)
    return found
