"""Measures the loss of quality from a quantized embedding and head on held-out text.

Usage: study_heads.py [CHECKPOINT] [--types q8_0,q6_k,...] [--windows N] [--json FILE]

Every type is compared with F16, token by token, on the same text: the held-out files of the standard library
(bitexport/text/stdlib.py). PyTorch computes everything; a head's activations are rounded as ggml rounds them
for its type, so the result is what C++ computes (`bitexport parity` checks that the two agree). Nothing is
calibrated: ggml's quantizers get no importance matrix.

"head" quantizes only the output matrix; "tied" also the embedding, as a tied file does, so that every layer
gets different inputs. A difference is the mean over tokens, with its standard error. KL is the mean
divergence from F16's distribution, in nats: it also shows changes that do not affect the true tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch

from bitexport.gguf.types import TYPES
from bitexport.reference import load_reference
from bitexport.reference.embeddings import rounded_for_head
from bitexport.runtime.ggml import quantize
from bitexport.text.stdlib import held_out_text

ALL_TYPES = "q8_0,q6_k,q5_k,q5_1,q5_0,iq4_nl,iq4_xs,q4_k,q4_1,q4_0,q3_k"
WINDOW = 512
BATCH = 8  # windows at once


@dataclass(slots=True)
class Scores:
    """For every predicted token: loss in nats, rank of the true token (1 is best), divergence from F16."""

    loss: npt.NDArray[np.float64]
    rank: npt.NDArray[np.float64]
    kl: npt.NDArray[np.float64]


@dataclass(slots=True)
class Row:
    """One type's means, each with the standard error of its paired difference from F16."""

    type: str
    what: str
    bits: float
    tokens: int
    loss: float
    loss_change: float
    loss_error: float
    kl: float
    rank: float
    rank_change: float
    rank_error: float
    top1: float
    top1_change: float
    top1_error: float


def dequantized(weights: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float32]:
    if name == "f16":
        return weights.astype(np.float16).astype(np.float32)
    kind = gguf.GGMLQuantizationType(TYPES[name].id)
    return np.asarray(gguf.quants.dequantize(quantize(weights, name), kind), dtype=np.float32)


def scores(
    logits: torch.Tensor, targets: torch.Tensor, base: torch.Tensor | None
) -> tuple[Scores, torch.Tensor]:
    """Scores of logits [N, V] for targets [N], and their log-probabilities."""
    logs = torch.log_softmax(logits, dim=-1)
    true = logs.gather(1, targets[:, None])
    kl = torch.zeros(len(targets)) if base is None else (base.exp() * (base - logs)).sum(1)
    rank = 1 + (logs > true).sum(1)
    return Scores(-true[:, 0].double().numpy(), rank.double().numpy(), kl.double().numpy()), logs


def study(
    model: Any, ids: torch.Tensor, weights: npt.NDArray[np.float32], types: list[str], tied: bool
) -> dict[tuple[str, str], Scores]:
    """Scores of F16 and every type on windows ids [N, WINDOW], by (what is quantized, type)."""
    matrices = {name: dequantized(weights, name) for name in ["f16", *types]}
    parts: dict[tuple[str, str], list[Scores]] = {}
    for begin in range(0, len(ids), BATCH):
        batch = ids[begin : begin + BATCH]
        targets = batch[:, 1:].reshape(-1)
        hidden = last_hidden(model, batch, matrices["f16"])
        base = None
        for name, matrix in matrices.items():
            found, logs = scores(logits_of(hidden, matrix, name), targets, base)
            base = logs if base is None else base
            parts.setdefault(("head", name), []).append(found)
            if tied and name != "f16":
                own = logits_of(last_hidden(model, batch, matrix), matrix, name)
                parts.setdefault(("tied", name), []).append(scores(own, targets, base)[0])
        print(f"{min(begin + BATCH, len(ids))}/{len(ids)} windows", end="\r", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {
        key: Scores(*(np.concatenate([getattr(p, field) for p in found]) for field in ("loss", "rank", "kl")))
        for key, found in parts.items()
    }


@torch.inference_mode()
def last_hidden(model: Any, batch: torch.Tensor, embedding: npt.NDArray[np.float32]) -> torch.Tensor:
    """The head's input [N, hidden] after all but the last token of every window."""
    model.get_input_embeddings().weight.data = torch.from_numpy(embedding)
    states: torch.Tensor = model.model(input_ids=batch).last_hidden_state[:, :-1].flatten(0, 1)
    return states


@torch.inference_mode()
def logits_of(hidden: torch.Tensor, matrix: npt.NDArray[np.float32], name: str) -> torch.Tensor:
    return rounded_for_head(hidden, name) @ torch.from_numpy(matrix).T


def summary(key: tuple[str, str], found: Scores, base: Scores) -> Row:
    def paired(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> tuple[float, float]:
        return float((a - b).mean()), float((a - b).std(ddof=1) / np.sqrt(len(a)))

    what, name = key
    kind = TYPES[name]
    return Row(
        name,
        what,
        8 * kind.block_bytes / kind.block,
        len(found.loss),
        float(found.loss.mean()),
        *paired(found.loss, base.loss),
        float(found.kl.mean()),
        float(found.rank.mean()),
        *paired(found.rank, base.rank),
        float((found.rank == 1).mean()),
        *paired((found.rank == 1) + 0.0, (base.rank == 1) + 0.0),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="?", default="examples/tiny-python")
    parser.add_argument("--types", default=ALL_TYPES)
    parser.add_argument("--windows", type=int, default=0, help="of 512 tokens; 0: all of the text")
    parser.add_argument("--head-only", action="store_true", help="skip the tied variants: much faster")
    parser.add_argument("--json")
    options = parser.parse_args()

    reference = load_reference(options.checkpoint)
    weights = reference.model.get_output_embeddings().weight.detach().numpy()
    tokens = np.asarray(reference.tokenize(held_out_text()))
    count = min(len(tokens) // WINDOW, options.windows or len(tokens))
    ids = torch.from_numpy(tokens[: count * WINDOW].reshape(count, WINDOW))

    found = study(reference.model, ids, weights.copy(), options.types.split(","), not options.head_only)
    base = found["head", "f16"]
    rows = [summary(key, value, base) for key, value in found.items()]
    print(
        "| type | bits | what | loss | change, nats | KL, nats | mean rank | change | top-1 "
        "| change, points |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(
            f"| {row.type} | {row.bits:.4g} | {row.what} | {row.loss:.4f} | {row.loss_change:+.5f} +- "
            f"{row.loss_error:.5f} | {row.kl:.5f} | {row.rank:.2f} | {row.rank_change:+.3f} +- "
            f"{row.rank_error:.3f} | {row.top1:.2%} | "
            f"{100 * row.top1_change:+.3f} +- {100 * row.top1_error:.3f} |"
        )
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
