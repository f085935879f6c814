"""Signs in the files next to the weights: the trainer's state, and the size of the vocabulary."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from bitexport.checkpoint.shards import read_json
from bitexport.errors import CheckpointError
from bitexport.health.signs import MAX_PADDING, MAX_PADDING_FRACTION
from bitexport.health.tensors import Health

TRAINER_STATE = "trainer_state.json"

#: Names for the best loss so far, in transformers' Trainer and in common training scripts.
BEST_KEYS = ("best_metric", "best_loss", "best_eval_loss", "best_val_loss")


def check_trainer_state(health: Health, folder: Path) -> None:
    """Check trainer_state.json, if there is one; a damaged one is ignored."""
    path = folder / TRAINER_STATE
    if not path.is_file():
        return
    try:
        state = read_json(path)
    except CheckpointError:
        return
    if state.get("global_step") == 0:
        health.add("never-trained", TRAINER_STATE, "global_step is 0")
    for key in BEST_KEYS:
        if _is_number(state.get(key)) and not math.isfinite(state[key]):
            health.add("loss-not-finite", TRAINER_STATE, f"{key} is {state[key]}")
    history = state.get("log_history")
    losses = [
        entry["loss"]
        for entry in (history if isinstance(history, list) else [])
        if isinstance(entry, dict) and _is_number(entry.get("loss"))
    ]
    if losses and not math.isfinite(losses[-1]):
        health.add("loss-not-finite", TRAINER_STATE, f"the last loss is {losses[-1]}")


def check_vocabulary(
    health: Health,
    *,
    ids: int | None,
    tokens: int | None,
    embeddings: int | None,
    place: str = "config.json",
) -> None:
    """Compare the sizes of a vocabulary; None means unknown.

    Args:
        ids: vocab_size in the model's configuration.
        tokens: size of the tokenizer's vocabulary: its largest id plus one.
        embeddings: rows of the token embedding.
        place: the file that gives ``ids``.
    """
    if ids is not None and embeddings is not None and ids != embeddings:
        health.add("vocabulary-mismatch", place, f"vocab_size {ids:,}, but {embeddings:,} embeddings")
    room = embeddings if embeddings is not None else ids
    if room is None or tokens is None:
        return
    missing = room - tokens
    if missing < 0:
        health.add("vocabulary-mismatch", place, f"{tokens:,} tokens, but {room:,} embeddings")
    elif missing > max(MAX_PADDING, room * MAX_PADDING_FRACTION):
        health.add(
            "vocabulary-mismatch", place, f"{room:,} embeddings, but the tokenizer has {tokens:,} tokens"
        )
    elif missing:
        health.add("padded-vocabulary", place, f"{missing:,} of {room:,} ids have no token")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
