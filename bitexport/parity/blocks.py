"""Does C++ decode blocks as PyTorch does? Both evaluate the same blocks, and then PyTorch decodes alone.

In lockstep, C++ decides which tokens to settle, and PyTorch evaluates the same blocks. So every pass is
compared, with the embeddings of the file and rounding decisions aligned as in
:mod:`bitexport.parity.aligned`. What PyTorch would have settled from its own logits must be the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitexport.blocks import BlockDecoding, BlockRule, Evaluator, TokenChoice
from bitexport.blocks.choice import confidence
from bitexport.gguf.embeddings import Embeddings
from bitexport.metrics.logits import Agreement, LogitComparison, compare_logits, join, summarize
from bitexport.parity.aligned import stored_weights
from bitexport.progress import Progress, ProgressEvent, ignore
from bitexport.reference import Reference
from bitexport.reference.alignment import Decisions, Stored, aligned_rounding
from bitexport.reference.blocks import BlockReference
from bitexport.reference.embeddings import replaced_embeddings
from bitexport.reference.float_layers import rounded_float_layers
from bitexport.runtime.block_session import BlockSession
from bitexport.runtime.observe import record_activations

#: The largest difference of aligned logits, as a fraction of their L2 norm, as in parity of plain decoding.
MAX_RELATIVE_ERROR = 0.005


@dataclass(frozen=True)
class BlockParity:
    """The result of decoding blocks on both sides.

    Attributes:
        rule: the rule of decoding.
        prompts: how many were continued; those that fill the context are not.
        tokens: how many C++ generated for all prompts.
        passes: how many evaluations were compared, those of the prompts' full blocks included.
        agreement: of the aligned logits that were used: those of every masked position in every pass.
        unexplained: activations that differ by more than rounding explains.
        same_decisions: the fraction of passes after which aligned PyTorch would have settled the same tokens;
            one that keeps a block settles the first token of the next, if the model shifts.
        identical: the fraction of prompts for which PyTorch alone, unaligned, writes the same text.
    """

    rule: BlockRule
    prompts: int
    tokens: int
    passes: int
    agreement: Agreement
    unexplained: int
    same_decisions: float
    identical: float

    def passed(self, min_cosine: float) -> bool:
        """Whether C++ computes what PyTorch computes, and decides the same. NaN never passes."""
        close = self.agreement.cosine_min >= min_cosine
        close = close and self.agreement.relative_error_max <= MAX_RELATIVE_ERROR
        return close and not self.unexplained and self.same_decisions == 1

    def to_json(self) -> dict[str, Any]:
        """The numbers as one JSON object."""
        return asdict(self)

    def describe(self) -> str:
        """The finding as a sentence."""
        prompts = "1 prompt" if self.prompts == 1 else f"{self.prompts} prompts"
        return (
            f"{self.rule.name} decoding in blocks: {self.tokens} tokens behind {prompts} in {self.passes} "
            f"passes, cosine at least {self.agreement.cosine_min:.8f} at {self.agreement.positions:,} "
            f"positions, the same tokens settled in {self.same_decisions:.1%} of the passes; PyTorch "
            f"alone writes the same text for {self.identical:.1%} of the prompts"
        )


def compare_blocks(
    reference: Reference,
    session: BlockSession,
    embeddings: Embeddings,
    ids_of: Sequence[Sequence[int]],
    tokens: int,
    rule: BlockRule,
    progress: Progress = ignore,
) -> BlockParity:
    """Decode every prompt in lockstep, and by PyTorch alone.

    Args:
        ids_of: the token ids of every prompt.
        tokens: the most tokens to continue each with. An end of text does not end it.

    Raises:
        UsageError: the checkpoint is not a model of block diffusion.
        UnsupportedError: see :func:`bitexport.parity.aligned.stored_weights`.
    """
    stored = stored_weights(reference, session.path)
    both = _Lockstep(reference, session, stored, rule)
    texts: list[list[int]] = []
    alone: list[list[int]] = []
    with (
        replaced_embeddings(reference.model, embeddings),
        rounded_float_layers(reference.modules(), session.path),
    ):
        for index, ids in enumerate(ids_of):
            progress(ProgressEvent(index, len(ids_of), "prompts", "decoding blocks"))
            both.clear()
            texts.append(_decode(both, session, ids, tokens, rule))
            alone.append(_decode(BlockReference(reference), session, ids, tokens, rule))
    return BlockParity(
        rule=rule,
        prompts=len(ids_of),
        tokens=sum(map(len, texts)),
        passes=both.passes,
        agreement=summarize(join(both.comparisons)),
        unexplained=Decisions.of_all(both.decisions).unexplained,
        same_decisions=both.same / max(1, both.decided),
        identical=sum(a == b for a, b in zip(texts, alone, strict=True)) / len(texts),
    )


def _decode(
    model: Evaluator, session: BlockSession, ids: Sequence[int], tokens: int, rule: BlockRule
) -> list[int]:
    return list(
        BlockDecoding(model, ids, session.diffusion, rule=rule, max_tokens=tokens, n_ctx=session.n_ctx)
    )


class _Lockstep:
    """An evaluator that runs both sides on the same block, compares them, and returns C++'s logits."""

    def __init__(self, reference: Reference, session: BlockSession, stored: Stored, rule: BlockRule) -> None:
        self._reference = reference
        self._python = BlockReference(reference)
        self._session = session
        self._stored = stored
        self._rule = rule
        self.passes = 0
        self.comparisons: list[LogitComparison] = []
        self.decisions: list[Decisions] = []
        self.decided = 0
        self.same = 0
        self._step = 0  # the passes over this block

    def clear(self) -> None:
        """Empty both caches."""
        self._step = 0
        self._python.clear()
        self._session.clear()

    def evaluate(self, ids: Sequence[int], rows: Sequence[int], *, keep: bool) -> npt.NDArray[np.float32]:
        everywhere = range(len(ids))  # as many rows in the last layer as in the others
        with record_activations() as recorded:
            cpp = self._session.evaluate(ids, everywhere, keep=keep)[list(rows)]
        with aligned_rounding(self._reference.ternary_layers(), recorded, self._stored) as decisions:
            python = self._python.evaluate(ids, everywhere, keep=keep)[list(rows)]
        self.passes += 1
        self.decisions.append(decisions)
        self.comparisons.append(compare_logits(python, cpp))
        if not keep:
            self._decide(python, cpp, self._after_settled(ids, rows))
            self._step += 1
        else:
            self._step = 0
            if self._session.diffusion.token_shift:  # settles the first token of the next block
                self._decide(python, cpp, np.ones(len(rows), dtype=np.bool_))
        return cpp

    def _after_settled(self, ids: Sequence[int], rows: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Whether the token before the position that each row predicts is known."""
        settings = self._session.diffusion
        shift = 1 if settings.token_shift else 0
        before = [row + shift - 1 for row in rows]
        return np.array([at < 0 or ids[at] != settings.mask_token_id for at in before])

    def _decide(
        self,
        python: npt.NDArray[np.float32],
        cpp: npt.NDArray[np.float32],
        after_settled: npt.NDArray[np.bool_],
    ) -> None:
        mask = self._session.diffusion.mask_token_id
        ours, theirs = (
            settled_tokens(logits, mask, self._rule, after_settled, self._step) for logits in (cpp, python)
        )
        self.decided += 1
        self.same += ours == theirs


def settled_tokens(
    logits: npt.NDArray[np.float32],
    mask_token: int,
    rule: BlockRule,
    after_settled: npt.NDArray[np.bool_],
    step: int,
) -> dict[int, int]:
    """The rows of ``logits`` ``[N, V]`` that a rule settles in a pass, with the tokens.

    Args:
        after_settled, step: see :meth:`bitexport.blocks.BlockRule.above`.
    """
    known = logits.copy()
    known[:, mask_token] = -np.inf
    _, sure = confidence(known)
    settled = rule.above(sure, after_settled, step)
    settled[sure.argmax()] = True
    choose = TokenChoice()
    return {index: choose(known[index]) for index in np.flatnonzero(settled).tolist()}
