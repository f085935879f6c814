"""The data of a stage: sources, split, tokenized, as examples to train on and examples held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitexport.errors import UsageError
from bitexport.text import Record, Template, encode_record, read_sources, split
from bitexport.train.config import TrainConfig
from bitexport.train.data.batches import Examples, Listed, Windows
from bitexport.train.data.tokens import stream_tokens, tokens_of


@dataclass(frozen=True)
class Data:
    """What a stage learns from, what it is judged by, and a line that says how much that is."""

    train: Examples
    held_out: Examples
    summary: str
    pairs: Sequence[Record] = ()  # those held out, where records are kept apart


def template_of(config: TrainConfig, name: str = "") -> Template:
    """The configuration's template, or the one called ``name`` with its languages."""
    return Template(name or config.template, config.source_language, config.target_language)


def load_data(
    specs: list[str], config: TrainConfig, template: Template, tokenizer: Any, folder: Path, budget: int
) -> Data:
    """Everything that ``specs`` name. Template "plain" packs it into windows, others keep records apart.

    A stream of a hub is tokenized into ``folder``/tokens.bin first, up to ``budget`` tokens, so that every
    pass, every process and a resumed run read the same. UsageError: a side has nothing that fits.
    """
    length = config.sequence_length
    if template.name == "plain" and any(spec.startswith("hub:") for spec in specs):
        tokens = stream_tokens(specs, config.held_out_percent, budget, tokenizer, folder)
        return _windows(tokens, config, ["", ""], "")
    parted = split(read_sources(specs), config.held_out_percent)
    sides = parted.train, parted.held_out
    counts = [f"{len(side):,} records" for side in sides]
    left_out = f"; left out: {parted.duplicates:,} equal to another"
    left_out += f", {parted.too_close:,} too close to training"
    if template.name == "plain":
        tokens = [tokens_of(side, template, tokenizer) for side in sides]
        return _windows(tokens, config, [f"{count}, " for count in counts], left_out)
    listed = []
    for name, side in zip(("of training", "held out"), sides, strict=True):
        found = [(record, encode_record(record, tokenizer, template, length)) for record in side]
        fitting = [(record, example) for record, example in found if example is not None]
        if not fitting:
            raise UsageError(f"data: no record fits into sequence_length = {length} tokens; raise it")
        left_out += f", {len(found) - len(fitting):,} {name} longer than {length} tokens"
        listed.append(Listed([(example.input_ids, example.labels) for _, example in fitting]))
    summary = f"data: {counts[0]} for training; {counts[1]} held out{left_out}"
    return Data(listed[0], listed[1], summary, [record for record, _ in fitting])


def _windows(tokens: list[np.ndarray], config: TrainConfig, counts: list[str], left_out: str) -> Data:
    """Training and held-out tokens as windows; ``counts`` and ``left_out`` are for the summary."""
    length = config.sequence_length
    train, held_out = (f"{count}{len(side):,} tokens" for count, side in zip(counts, tokens, strict=True))
    if min(map(len, tokens)) < 2 * length:
        expected = f"at least {2 * length:,} tokens each; shorten sequence_length or give more text"
        raise UsageError(f"data: {train} for training and {held_out} held out; expected {expected}")
    summary = f"data: {train} for training; {held_out} held out{left_out}"
    return Data(Windows(tokens[0], length, config.seed), Windows(tokens[1], length), summary)
