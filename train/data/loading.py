"""The data of a stage: sources, split and tokenized, as examples to train on and examples held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitexport.errors import UsageError
from bitexport.text import Record, Split, Template, encode_record, read_sources, split
from bitexport.train.config import TrainConfig
from bitexport.train.data.examples import Examples, ListedExamples, WindowedExamples
from bitexport.train.data.tokens import Tokens, stream_tokens, tokens_of


@dataclass(frozen=True)
class StageData:
    """Both sides of a stage's data.

    Attributes:
        train: the examples to train on.
        held_out: the examples to evaluate on.
        summary: one line for the log, how much there is and what was left out.
        held_out_records: the records behind ``held_out``; empty where records are packed into windows.
    """

    train: Examples
    held_out: Examples
    summary: str
    held_out_records: Sequence[Record] = ()


def template_of(config: TrainConfig, name: str = "") -> Template:
    """The configuration's template, or the template ``name`` with the configuration's languages."""
    return Template(name or config.template, config.source_language, config.target_language)


def load_data(
    sources: list[str], config: TrainConfig, template: Template, tokenizer: Any, folder: Path, budget: int
) -> StageData:
    """Read ``sources``; template "plain" packs them into windows, the others keep records separate.

    A stream from the hub is first tokenized into ``folder``/tokens.bin, up to ``budget`` tokens, so that
    every pass, every process and a resumed run read the same.

    Raises:
        UsageError: one side has nothing that fits, or what reading a source raises.
    """
    if template.name == "plain" and any(source.startswith("hub:") for source in sources):
        train, held_out = stream_tokens(sources, config.held_out_percent, budget, tokenizer, folder)
        return _windows(train, held_out, config, f"{len(train):,} tokens", f"{len(held_out):,} tokens")
    records = split(read_sources(sources), config.held_out_percent)
    if template.name == "plain":
        train = tokens_of(records.train, template, tokenizer)
        held_out = tokens_of(records.held_out, template, tokenizer)
        train_size = f"{len(records.train):,} records, {len(train):,} tokens"
        held_out_size = f"{len(records.held_out):,} records, {len(held_out):,} tokens"
        return _windows(train, held_out, config, train_size, held_out_size, _left_out(records))
    return _prompts_with_answers(records, config, template, tokenizer)


def _prompts_with_answers(
    records: Split, config: TrainConfig, template: Template, tokenizer: Any
) -> StageData:
    length = config.sequence_length
    train, _, train_too_long = _encode_records(records.train, template, tokenizer, length)
    held_out, held_out_records, held_out_too_long = _encode_records(
        records.held_out, template, tokenizer, length
    )
    summary = (
        f"data: {len(records.train):,} records for training; {len(records.held_out):,} records held out"
        f"{_left_out(records)}, {train_too_long:,} of training longer than {length} tokens, "
        f"{held_out_too_long:,} held out longer than {length} tokens"
    )
    return StageData(train, held_out, summary, held_out_records)


def _encode_records(
    records: Sequence[Record], template: Template, tokenizer: Any, length: int
) -> tuple[ListedExamples, list[Record], int]:
    """The examples of at most ``length`` tokens, their records, and how many records were too long."""
    examples = []
    fitting = []
    for record in records:
        encoded = encode_record(record, tokenizer, template, length)
        if encoded is not None:
            examples.append((encoded.input_ids, encoded.labels))
            fitting.append(record)
    if not examples:
        raise UsageError(f"data: no record fits into sequence_length = {length} tokens; raise it")
    return ListedExamples(examples), fitting, len(records) - len(fitting)


def _windows(
    train: Tokens,
    held_out: Tokens,
    config: TrainConfig,
    train_size: str,
    held_out_size: str,
    left_out: str = "",
) -> StageData:
    """Both sides as windows; the last three arguments are for the summary."""
    length = config.sequence_length
    if min(len(train), len(held_out)) < 2 * length:
        expected = f"at least {2 * length:,} tokens each; shorten sequence_length or give more text"
        raise UsageError(f"data: {train_size} for training and {held_out_size} held out; expected {expected}")
    summary = f"data: {train_size} for training; {held_out_size} held out{left_out}"
    return StageData(
        WindowedExamples(train, length, config.seed), WindowedExamples(held_out, length), summary
    )


def _left_out(records: Split) -> str:
    return f"; left out: {records.duplicates:,} equal to another, {records.too_close:,} too close to training"
