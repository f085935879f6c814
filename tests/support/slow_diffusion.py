"""A second implementation of block diffusion, from its definition: one block after the other, no cache.

It shares nothing with the code under test: lists of token ids, and a whole forward pass for every question.
"""

from __future__ import annotations

import torch


def logits_of(model, ids, block_size):
    """Logits [T, V] of ``ids``, where position i sees position j if j's block is not after i's block."""
    T = len(ids)
    mask = torch.zeros(1, 1, T, T)
    for i in range(T):
        for j in range(T):
            if j // block_size > i // block_size:
                mask[0, 0, i, j] = torch.finfo(torch.float32).min
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), attention_mask=mask, use_cache=False).logits[0]


def losses_of_copy(model, ids, counted, masked, block_size, mask_token):
    """Minus the log-probability of every masked token of one noisy copy, by its position.

    The first token of a block is predicted where the text itself is known up to it, masked or not.
    """
    found = {}
    for i, token in enumerate(ids):
        begin = i // block_size * block_size
        if not counted[i] or i == 0:
            continue
        if i == begin:
            logits = logits_of(model, ids[:begin], block_size)[-1]
        elif masked[i]:
            block = range(begin, min(begin + block_size, len(ids)))
            noisy = [mask_token if masked[j] else ids[j] for j in block]
            logits = logits_of(model, ids[:begin] + noisy, block_size)[i - 1]
        else:
            continue
        found[i] = -torch.log_softmax(logits.double(), -1)[token].item()
    return found
