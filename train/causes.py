"""What may have made a run diverge, found after it did."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from bitexport.train.batch import Batch


def zero_rows(model: Any) -> frozenset[int]:
    """The tokens whose row of the input embedding is all zero, as of padding tokens."""
    weight = model.get_input_embeddings().weight.detach()
    return frozenset(torch.nonzero((weight == 0).all(dim=1))[:, 0].tolist())


def describe_zero_rows(zero: frozenset[int], batches: Iterable[Batch], tokenizer: Any) -> str:
    """A sentence if examples of the batches begin with a token of ``zero``; "" otherwise.

    The first token attends to itself alone. If its embedding is zero, every value at its position is zero
    through all layers, and each RMSNorm divides its gradient by sqrt(epsilon).
    """
    starts = 0
    found: set[int] = set()
    for batch in batches:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        is_first = mask.bool()
        is_first[:, 1:] &= mask[:, 1:] != mask[:, :-1]
        firsts = ids[is_first].tolist()
        starts += len(firsts)
        found |= zero.intersection(firsts)
    if not found:
        return ""
    names = ", ".join(f"{token} ({tokenizer.convert_ids_to_tokens(token)!r})" for token in sorted(found)[:3])
    return (
        f"examples begin with token {names}, whose embedding is all zero: every RMSNorm multiplies its "
        "gradient; begin with another token, or give its row small random numbers"
    )
