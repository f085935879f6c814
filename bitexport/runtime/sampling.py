"""Chooses the next token with llama.cpp's samplers."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bitexport.errors import BitexportError, UsageError
from bitexport.runtime.library import api

#: The repeat penalty looks back this many tokens, as llama.cpp's tools do.
PENALTY_TOKENS = 64

#: llama.cpp's seeds are 32-bit numbers; the largest means "at random".
MAX_SEED = 2**32 - 2


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen, with llama.cpp's samplers.

    In this order: repeat penalty, grammar, top-k, top-p, min-p, temperature.

    Attributes:
        temperature: 0 always chooses the most likely token; 1 uses the model's probabilities unchanged.
        top_k: sample only from this many most likely tokens; 0 for all.
        top_p: sample only from the most likely tokens whose probabilities add up to this; 1 for all.
        seed: the same seed gives the same text on the same machine.
        min_p: sample only from tokens with at least this share of the most likely one's probability; 0 for
            all.
        repeat_penalty: divides positive logits of the last 64 tokens, prompt included, and multiplies
            negative ones; 1 for no penalty.
        grammar: a grammar in llama.cpp's GBNF that the text follows; empty for any text.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    seed: int = 0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    grammar: str = ""

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < math.inf and self.top_k >= 0 and 0 < self.top_p <= 1):
            raise UsageError(
                f"temperature {self.temperature}, top-k {self.top_k}, top-p {self.top_p}: expected "
                "temperature and top-k of 0 or more, and top-p above 0 and at most 1"
            )
        if not (0 <= self.min_p <= 1 and 0 < self.repeat_penalty < math.inf):
            raise UsageError(
                f"min-p {self.min_p}, repeat penalty {self.repeat_penalty}: expected min-p from 0 to 1, and "
                "a repeat penalty above 0"
            )
        if not 0 <= self.seed <= MAX_SEED:
            raise UsageError(f"seed {self.seed}: expected 0 to {MAX_SEED}")


#: llama.cpp's defaults, without min-p.
DEFAULT_SAMPLING = Sampling()


class Sampler:
    """A chain of llama.cpp's samplers for one text.

    Args:
        vocab: the ``llama_vocab`` pointer.
        sampling: how to choose.
        prompt: the tokens before the text, for the repeat penalty.

    Raises:
        UsageError: the grammar has a mistake.
    """

    def __init__(self, vocab: Any, sampling: Sampling, prompt: Sequence[int]) -> None:
        self._api = calls = api()
        self._chain: Any = None
        self._grammar: Any = None
        if sampling.grammar:
            from bitexport.runtime.grammar import grammar_sampler

            self._grammar = grammar_sampler(vocab, sampling.grammar)
        self._chain = calls.llama_sampler_chain_init(calls.llama_sampler_chain_default_params())
        self._vocabulary = int(calls.llama_vocab_n_tokens(vocab))
        if sampling.repeat_penalty != 1:
            penalties = calls.llama_sampler_init_penalties(
                self._vocabulary, PENALTY_TOKENS, sampling.repeat_penalty, 0.0, 0.0
            )
            self._add(penalties)
            for token in prompt[-PENALTY_TOKENS:]:
                calls.llama_sampler_accept(penalties, token)
        if sampling.temperature == 0:
            self._add(calls.llama_sampler_init_greedy())
            return
        self._add(calls.llama_sampler_init_top_k(sampling.top_k))
        self._add(calls.llama_sampler_init_top_p(sampling.top_p, 1))
        if sampling.min_p > 0:
            self._add(calls.llama_sampler_init_min_p(sampling.min_p, 1))
        self._add(calls.llama_sampler_init_temp(sampling.temperature))
        self._add(calls.llama_sampler_init_dist(sampling.seed))

    def _add(self, sampler: Any) -> None:
        self._api.llama_sampler_chain_add(self._chain, sampler)

    def copy(self) -> Sampler:
        """A sampler that would choose the same tokens from the same logits, and has its own state."""
        other = object.__new__(Sampler)
        other._api, other._vocabulary = self._api, self._vocabulary
        other._chain = self._api.llama_sampler_clone(self._chain)
        other._grammar = self._api.llama_sampler_clone(self._grammar) if self._grammar else None
        return other

    def choose(self, context: Any, place: int = -1) -> int:
        """The next token after a position of a ``llama_context`` that has logits.

        Args:
            context: the ``llama_context`` pointer.
            place: which one: -1 for the last position with logits, -2 for the one before it.

        Raises:
            BitexportError: the grammar allows none of the model's tokens here.
        """
        if self._grammar is None:
            return int(self._api.llama_sampler_sample(self._chain, context, place))
        return self._choose_by_grammar(context, place)

    def _choose_by_grammar(self, context: Any, place: int) -> int:
        """As llama_sampler_sample, which would end the process if the grammar allows nothing."""
        import numpy as np  # slow to import

        count = self._vocabulary
        fields = [("id", np.intc), ("logit", np.single), ("p", np.single)]
        candidates = np.zeros(count, dtype=np.dtype(fields, align=True))
        candidates["id"] = np.arange(count)
        candidates["logit"] = np.ctypeslib.as_array(
            self._api.llama_get_logits_ith(context, place), shape=(count,)
        )
        data = candidates.ctypes.data_as(self._api.llama_token_data_p)
        array = self._api.llama_token_data_array(data=data, size=count, selected=-1, sorted=False)
        self._api.llama_sampler_apply(self._grammar, ctypes.byref(array))
        if not np.isfinite(candidates["logit"]).any():
            raise BitexportError(
                "the grammar allows none of the model's tokens here; it may end where the model has no "
                "end-of-text token, or need characters that the vocabulary lacks: change the grammar"
            )
        self._api.llama_sampler_apply(self._chain, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        self._api.llama_sampler_accept(self._grammar, token)
        self._api.llama_sampler_accept(self._chain, token)
        return token

    def close(self) -> None:
        """Free the samplers. Closing twice does nothing."""
        for sampler in (self._chain, self._grammar):
            if sampler:
                self._api.llama_sampler_free(sampler)
        self._chain = self._grammar = None

    def __del__(self) -> None:
        self.close()
