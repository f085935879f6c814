"""Perplexity of a checkpoint, as transformers computes it in float32."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, BitNetForCausalLM

from bitexport.errors import CheckpointError
from train.corpus import load_corpus
from train.data import HeldOutWindows
from train.tokenizer import encode_documents


def held_out_perplexity(
    checkpoint: Path, held_out_percent: int, length: int, text_dir: str = ""
) -> dict[str, float]:
    """:func:`perplexity` over the held-out files of ``text_dir`` (empty: the standard library).

    Raises:
        CheckpointError: the folder holds no checkpoint.
    """
    if not (checkpoint / "config.json").exists():
        raise CheckpointError(f"{checkpoint}: no config.json; give the folder of a checkpoint")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokens = encode_documents(tokenizer, load_corpus(held_out_percent, text_dir).held_out)
    return perplexity(checkpoint, tokens, length)


@torch.inference_mode()
def perplexity(checkpoint: Path, tokens: npt.NDArray[np.int64], length: int) -> dict[str, float]:
    """Next-token loss over windows of ``length`` tokens that do not overlap; a shorter rest is left out.

    Each window starts afresh, so that its first token has no prediction: ``length - 1`` predictions a window.

    Returns:
        ``loss`` in nats a token, ``perplexity`` = exp(loss), ``tokens`` = the number of predictions.
    """
    total, count = 0.0, 0
    with torch.compiler.set_stance("force_eager"):  # the reference: nothing fused, nothing reordered
        model = BitNetForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        for window in HeldOutWindows(tokens, length).windows:
            ids = torch.from_numpy(window)
            logits = model(input_ids=ids[None]).logits[0, :-1]  # (T - 1, V)
            total += float(F.cross_entropy(logits, ids[1:], reduction="sum"))
            count += length - 1
    loss = total / count
    return {"loss": loss, "perplexity": math.exp(loss), "tokens": count}
