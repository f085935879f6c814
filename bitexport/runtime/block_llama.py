"""Decoding in blocks on a model of :func:`bitexport.load`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bitexport.blocks import BlockDecoding, BlockRule
from bitexport.blocks.rules import DEFAULT_RULE
from bitexport.errors import GGUFError, UsageError
from bitexport.runtime.block_checks import check_blocks, token_choice
from bitexport.runtime.library import bind
from bitexport.runtime.limits import room_behind
from bitexport.runtime.sampling import DEFAULT_SAMPLING, Sampling
from bitexport.runtime.token_batch import LogitsView, TokenBatch

if TYPE_CHECKING:
    from llama_cpp import Llama


def decode_blocks(
    llama: Llama,
    prompt: Sequence[int],
    *,
    sampling: Sampling = DEFAULT_SAMPLING,
    rule: BlockRule = DEFAULT_RULE,
    max_tokens: int = 256,
) -> Iterator[int]:
    """The tokens that continue a prompt, in order, as they are settled; ends before an end of text.

    What the model evaluated before is forgotten, and so are the blocks at the end. Between two tokens the
    model is an ordinary one, but anything else that it evaluates takes the blocks' place: do not continue.

    Args:
        llama: a model of :func:`bitexport.load`.
        prompt: at least one token, and fewer than the context.
        sampling: how to choose tokens; a grammar and a repeat penalty are refused.
        rule: which tokens to settle in a pass.
        max_tokens: the most tokens; fewer if the context ends before.

    Raises:
        UsageError: the file is a plain model or has sliding windows, the prompt does not fit, a block does
            not fit ``n_ubatch``, or an option needs the text in order; while iterating, the model has
            evaluated something else since the token before.
        GGUFError: libllama fails.
    """
    settings = check_blocks(llama.model_path, sampling, instead="create_completion")
    room_behind(len(prompt), llama.n_ctx(), "n_ctx")
    if max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens}; expected 1 or more")
    most = min(int(llama.context_params.n_ubatch), int(llama.context_params.n_batch))
    if settings.block_size > most:
        raise UsageError(
            f"{llama.model_path} has blocks of {settings.block_size} tokens, and this context evaluates "
            f"{most} at once; load it with n_ctx, n_batch and n_ubatch of more than {settings.block_size}"
        )
    return _decode(llama, list(prompt), settings, sampling, rule, max_tokens)


def _decode(
    llama: Llama, prompt: list[int], settings: Any, sampling: Sampling, rule: BlockRule, max_tokens: int
) -> Iterator[int]:
    api = bind().llama_cpp
    vocabulary = api.llama_model_get_vocab(llama.model)
    count = api.llama_vocab_n_tokens(vocabulary)
    ends = [token for token in range(count) if api.llama_vocab_is_eog(vocabulary, token)]
    evaluator = _LlamaBlocks(llama, settings.block_size)
    try:
        yield from BlockDecoding(
            evaluator,
            prompt,
            settings,
            rule=rule,
            choose=token_choice(sampling),
            ends=ends,
            max_tokens=max_tokens,
            n_ctx=llama.n_ctx(),
        )
    finally:
        evaluator.close()


class _LlamaBlocks:
    """An evaluator of :class:`bitexport.blocks.Evaluator`; attention is causal outside its evaluations."""

    def __init__(self, llama: Any, block_size: int) -> None:
        self._llama = llama
        self._api = bind().llama_cpp
        self._batch = TokenBatch(self._api, block_size)
        self._view = LogitsView()
        self._used = 0
        self._forget()
        llama.blocks_of = self._key = object()

    def evaluate(self, ids: Sequence[int], rows: Sequence[int], *, keep: bool) -> npt.NDArray[np.float32]:
        llama, api = self._llama, self._api
        llama._owner.check()
        if not llama.ctx:
            raise UsageError(f"{llama.model_path} was closed while decode_blocks was in use; load it again")
        with llama._computing(self._key):
            if not self._has_cache():
                raise UsageError(
                    f"{llama.model_path} has evaluated something else since the last token of decode_blocks, "
                    "which took the place of its blocks; take all tokens first, with "
                    "list(decode_blocks(...)), or load the model twice"
                )
            api.llama_set_causal_attn(llama.ctx, False)
            try:
                code = api.llama_decode(llama.ctx, self._batch.fill(ids, self._used, rows))
            finally:
                api.llama_set_causal_attn(llama.ctx, True)
            if code != 0:
                raise RuntimeError(f"llama_decode returned {code}")
            logits = self._view.of(api.llama_get_logits(llama.ctx), len(rows), llama.n_vocab()).copy()
            if keep:
                self._used += len(ids)
            elif not api.llama_memory_seq_rm(api.llama_get_memory(llama.ctx), 0, self._used, -1):
                raise GGUFError(
                    f"{llama.model_path} keeps a state that cannot forget a part, so it has no blocks"
                )
        return logits

    def _has_cache(self) -> bool:
        """Whether our blocks are still in the cache; a state that was loaded has plain tokens."""
        return self._llama.blocks_of is self._key and self._llama.n_tokens == 0

    def _forget(self) -> None:
        self._llama.reset()
        self._api.llama_memory_clear(self._api.llama_get_memory(self._llama.ctx), True)

    def close(self) -> None:
        if self._llama.ctx and self._has_cache():  # otherwise it is another's
            self._llama.blocks_of = None
            self._forget()
        self._batch.free()
