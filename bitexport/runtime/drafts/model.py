"""Drafts from a second, smaller model with the same vocabulary."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from bitexport.runtime.drafts.pace import Pace
from bitexport.runtime.library import bind
from bitexport.runtime.sampling import Sampler

# The more probability the draft model gives its token, the likelier it is right: from which a level of trust
# begins, and what is assumed of it until it is measured.
_LEVELS = ((0.0, 0.15), (0.2, 0.3), (0.4, 0.5), (0.6, 0.65), (0.8, 0.8), (0.95, 0.93))
#: The level that stands for any token, and what is assumed of it.
_ANY = len(_LEVELS)
_ANY_PRIOR = 0.6


class ModelDrafts:
    """Lets a smaller model continue the text.

    It chooses with a copy of the text's sampler, random numbers included. So where both models have the same
    probabilities it drafts just the token that will be chosen.

    Args:
        llama: the model, opened by :func:`bitexport.load`; closed with these drafts.
        name: how it is called in figures.
    """

    def __init__(self, llama: Any, name: str) -> None:
        self.name = name
        self.pace = Pace([*(prior for _, prior in _LEVELS), _ANY_PRIOR], usual=_ANY)
        self._llama = llama
        self._api = bind().llama_cpp
        self._vocab: Any = self._api.llama_model_get_vocab(llama.model)
        self._ids: list[int] = []
        self._evaluated = 0  # tokens that the model's cache has in common with the text

    def begin(self, ids: Sequence[int]) -> None:
        """Start a text with these tokens."""
        self._ids = list(ids)
        done = self._llama.input_ids[: self._llama.n_tokens].tolist()
        same = min(len(done), len(ids))
        self._evaluated = next((at for at in range(same) if done[at] != ids[at]), same)

    def follow(self, token: int) -> None:
        """Continue the text."""
        at = len(self._ids)
        if at < self._evaluated and self._llama.input_ids[at] != token:
            self._evaluated = at
        self._ids.append(token)

    def propose(self, most: int, sampler: Sampler) -> tuple[list[int], list[int]]:
        """Draft what may come next.

        Args:
            most: the most tokens.
            sampler: will choose the text's next token.

        Returns:
            The tokens, and the trust in each.
        """
        tokens: list[int] = []
        trusts: list[int] = []
        most = min(most, int(self._llama.n_ctx()) - len(self._ids))
        if most < 1 or not self.pace.worth_drafting(trusts):
            return tokens, trusts
        start = time.perf_counter()
        own = sampler.copy()
        try:
            while len(tokens) < most and self.pace.worth_drafting(trusts):
                self._evaluate([*self._ids, *tokens] if tokens else self._ids)
                token = own.choose(self._llama.ctx)
                if self._api.llama_vocab_is_eog(self._vocab, token):
                    break  # the pass says by itself whether the text ends here
                tokens.append(token)
                trusts.append(self._trust(token))
        finally:
            own.close()
        self.pace.add_draft(len(tokens), time.perf_counter() - start)
        worth = self.pace.worth(trusts)
        return tokens[:worth], trusts[:worth]

    def _evaluate(self, ids: Sequence[int]) -> None:
        """Make the logits after ``ids`` the context's last."""
        begin = min(self._evaluated, len(ids) - 1)
        self._llama.n_tokens = begin
        self._llama.eval(ids[begin:])
        self._evaluated = len(ids)

    def _trust(self, token: int) -> int:
        """The level of trust for a token that was drafted from the last logits."""
        pointer = self._api.llama_get_logits_ith(self._llama.ctx, -1)
        logits = np.ctypeslib.as_array(pointer, shape=(self._llama.n_vocab(),))
        probability = float(1 / np.exp(logits - logits[token]).sum())
        return sum(probability >= begin for begin, _ in _LEVELS) - 1

    def close(self) -> None:
        """Free the model. Closing twice does nothing."""
        self._llama.close()
