"""Does the model know a language, and is it written in this tokenizer's tokens? Free sampling shows both.

A model that predicts a text badly may know nothing, or may know a language other than the text's; the usual
case is the ids of another tokenizer. Sampling freely shows which: ids are drawn without any tokenizer. If the
model learned from text, each id depends on the ids before it. If the tokenizer is its own, decoding the ids
and encoding the text again gives mostly the same ids, because the model has only seen encoded text. With
another tokenizer the decoded pieces meet by chance, and survive no better than in shuffled order. White space
does not count: a model that never saw such a beginning may write runs of spaces and line ends, which its own
tokenizer merges.
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
        information: nats that context reveals about the next token: the entropy of the mean distribution
            minus the mean entropy.
        entropy: mean entropy of the next token, in nats.
        distinct: how many different tokens were sampled, out of :data:`SEQUENCES` x :data:`LENGTH`.
        repeated: the fraction of tokens that equal the previous one; a random network often gets stuck.
        words: the fraction of tokens that are more than white space.
        kept: the fraction of ids, those of white space apart, that survive decoding and re-encoding.
        kept_shuffled: the same for the ids in shuffled order, as the level of chance.
    """

    information: float
    entropy: float
    distinct: int
    repeated: float
    words: float
    kept: float
    kept_shuffled: float

    @property
    def skill(self) -> float:
        """The fraction of the entropy of single tokens that context removes."""
        total = self.information + self.entropy
        return self.information / total if total > 0 else 0.0


def sample_freely(reference: Reference, starts: Sequence[int]) -> FreeSampling:
    """Sample :data:`SEQUENCES` texts of :data:`LENGTH` tokens, each from one of ``starts`` in turn."""
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
            probabilities = np.exp(logs)
            mean += probabilities.sum(axis=0)
            entropies += [entropy(row) for row in logs]
            columns.append(np.array([_draw(row, rng) for row in probabilities]))
    mean /= mean.sum()
    with np.errstate(divide="ignore"):
        entropy_of_mean = entropy(np.log(mean))
    sampled = np.stack(columns[1:], axis=1)
    shuffled = rng.permutation(sampled.reshape(-1)).reshape(sampled.shape)
    return FreeSampling(
        information=entropy_of_mean - float(np.mean(entropies)),
        entropy=float(np.mean(entropies)),
        distinct=len(np.unique(sampled)),
        repeated=float((sampled[:, 1:] == sampled[:, :-1]).mean()),
        words=float(np.mean([len(_positions(reference, row)) / LENGTH for row in sampled])),
        kept=_kept_fraction(reference, sampled),
        kept_shuffled=_kept_fraction(reference, shuffled),
    )


def _draw(probabilities: npt.NDArray[np.float64], rng: np.random.Generator) -> int:
    index = int(np.searchsorted(np.cumsum(probabilities), rng.random() * probabilities.sum()))
    return min(index, len(probabilities) - 1)


def _kept_fraction(reference: Reference, rows: npt.NDArray[np.int64]) -> float:
    """The fraction of tokens that decoding and re-encoding puts at the same place in their text."""
    kept = total = 0
    for ids in rows:
        text = reference.text([int(token) for token in ids])
        encoded = reference.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        before = _positions(reference, ids)
        kept += len(before & _positions(reference, encoded))
        total += len(before)
    return kept / total if total else 0.0


def _positions(reference: Reference, ids: Sequence[int] | npt.NDArray[np.int64]) -> set[tuple[int, int]]:
    """Every token that is not white space, as (first character, id)."""
    begin = 0
    found = set()
    for token in map(int, ids):
        text = reference.tokenizer.decode([token])
        if not text.isspace():
            found.add((begin, token))
        begin += len(text)
    return found
