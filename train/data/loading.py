"""The data of a stage: sources, split and tokenized, as examples to train on and examples held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitexport.errors import UsageError
from bitexport.progress import Progress, ignore
from bitexport.text import Record, Template, encode_record, read_source, side_of, texts_of
from bitexport.train.config import TrainConfig
from bitexport.train.data.cache import TokenCache, open_cache
from bitexport.train.data.examples import (
    CachedExamples,
    Examples,
    ListedExamples,
    MixedExamples,
    RunOfTokens,
    WindowedExamples,
)
from bitexport.train.data.mixture import Mixture, parse_mixture
from bitexport.train.data.tokens import tokens_of

# Text read for calibration, as a multiple of what is used, so that it is not all from one file.
_CALIBRATION_FACTOR = 100
_CHARACTERS_PER_TOKEN = 4
_Part = CachedExamples | WindowedExamples


@dataclass(frozen=True)
class StageData:
    """Both sides of a stage's data.

    Attributes:
        train: the examples to train on.
        held_out: the examples to evaluate on.
        summary: one line for the log, how much there is and what was left out.
        held_out_pairs: prompt, answer and source text behind each of ``held_out``, read when called; none
            where records are packed into windows.
    """

    train: Examples
    held_out: Examples
    summary: str
    held_out_pairs: Callable[[], list[tuple[str, str, str | None]]] = list


def template_of(config: TrainConfig, name: str = "") -> Template:
    """The configuration's template, or the template ``name`` with the configuration's languages."""
    return Template(name or config.template, config.source_language, config.target_language)


def cache_folder(config: TrainConfig) -> Path:
    """Where the tokens of the run's data are kept."""
    return Path(config.data_cache) if config.data_cache else Path(config.run_dir) / "data"


def load_data(
    sources: list[str],
    config: TrainConfig,
    template: Template,
    tokenizer: Any,
    budget: int,
    progress: Progress = ignore,
) -> StageData:
    """Read ``sources``; template "plain" packs them into windows, the others keep records separate.

    They are tokenized once, into :func:`cache_folder`: every pass, every process, a resumed run and another
    run with the same data read the same. A stream from the hub that is packed is read up to ``budget``
    tokens.

    Raises:
        UsageError: one side has nothing that fits, or what reading a source raises.
    """
    mixture = parse_mixture(sources)
    is_plain = template.name == "plain"
    streamed = is_plain and any(source.startswith("hub:") for source in sources)
    cache = open_cache(
        mixture,
        template,
        config.held_out_percent,
        tokenizer,
        cache_folder(config),
        labels=config.answers_are_labels,
        limit=budget if streamed else 0,
        progress=progress,
    )
    left_out = f"; left out: {cache.duplicates:,} equal to another, {cache.too_close:,} too close to training"
    if is_plain:
        lead = [] if streamed else [tokenizer.eos_token_id]
        return _windows(cache, mixture, config, lead, "" if streamed else left_out)
    return _prompts_with_answers(cache, mixture, config, left_out)


def _windows(
    cache: TokenCache, mixture: Mixture, config: TrainConfig, lead: list[int], left_out: str
) -> StageData:
    length = config.sequence_length
    sizes = [
        f"{len(records):,} records, {len(RunOfTokens(cache, records, lead)):,} tokens"
        for records in (cache.train, cache.held_out)
    ]
    train = [
        WindowedExamples(RunOfTokens(cache, records, lead), length, config.seed)
        for records in _parts(cache, cache.train, mixture)
    ]
    held_out = WindowedExamples(RunOfTokens(cache, cache.held_out, lead), length)
    smallest = min(len(held_out.tokens), *(len(part.tokens) for part in train))
    if smallest < 2 * length:
        expected = f"at least {2 * length:,} tokens each; shorten sequence_length or give more text"
        found = f"{sizes[0]} for training and {sizes[1]} held out"
        raise UsageError(f"data: {found}; expected {expected}")
    summary = f"data: {sizes[0]} for training; {sizes[1]} held out{left_out}"
    return StageData(_mixed(train, mixture), held_out, summary)


def _prompts_with_answers(
    cache: TokenCache, mixture: Mixture, config: TrainConfig, left_out: str
) -> StageData:
    length = config.sequence_length
    fits = cache.lengths <= length
    fitting = [records[fits[records]] for records in (cache.train, cache.held_out)]
    parts = [CachedExamples(cache, records) for records in _parts(cache, fitting[0], mixture)]
    if any(len(part.lengths) == 0 for part in parts) or len(fitting[1]) == 0:
        raise UsageError(f"data: no record fits into sequence_length = {length} tokens; raise it")
    summary = (
        f"data: {len(cache.train):,} records for training; {len(cache.held_out):,} records held out"
        f"{left_out}, {len(cache.train) - len(fitting[0]):,} of training longer than {length} tokens, "
        f"{len(cache.held_out) - len(fitting[1]):,} held out longer than {length} tokens"
    )

    def held_out_pairs() -> list[tuple[str, str, str | None]]:
        pairs = cache.held_out_pairs()
        return [pair for pair, keep in zip(pairs, fits[cache.held_out].tolist(), strict=True) if keep]

    return StageData(_mixed(parts, mixture), CachedExamples(cache, fitting[1]), summary, held_out_pairs)


def _parts(
    cache: TokenCache, records: npt.NDArray[np.uint32], mixture: Mixture
) -> list[npt.NDArray[np.uint32]]:
    """``records`` by source if these have weights; otherwise all together."""
    if mixture.weights is None:
        return [records]
    sources = cache.sources[records]
    return [records[sources == number] for number in range(len(mixture.specs))]


def _mixed(parts: list[Any], mixture: Mixture) -> Examples:
    return parts[0] if mixture.weights is None else MixedExamples(parts, mixture.weights)


def calibration_examples(config: TrainConfig, template: Template, tokenizer: Any, tokens: int) -> Examples:
    """Examples of the training side with at least ``tokens`` tokens, from the beginning of every source.

    Reads only as much of them as that needs, and keeps nothing on the disk.

    Raises:
        UsageError: nothing fits into sequence_length, or what reading a source raises.
    """
    specs = parse_mixture(config.data).specs
    characters = _CALIBRATION_FACTOR * _CHARACTERS_PER_TOKEN * tokens // len(specs)
    records = [record for spec in specs for record in _beginning(spec, characters)]
    sides = [side_of(record, config.held_out_percent, config.answers_are_labels) for record in records]
    train = [record for record, side in zip(records, sides, strict=True) if side == "train"]
    if template.name == "plain":
        return WindowedExamples(tokens_of(train, template, tokenizer), config.sequence_length, config.seed)
    wanted = max(1, tokens // config.sequence_length) * _CALIBRATION_FACTOR
    spread = train[:: max(1, len(train) // wanted)]
    encoded = [encode_record(record, tokenizer, template, config.sequence_length) for record in spread]
    examples = [(found.input_ids, found.labels) for found in encoded if found is not None]
    if not examples:
        raise UsageError(
            f"data: no record fits into sequence_length = {config.sequence_length} tokens; raise it"
        )
    return ListedExamples(examples)


def _beginning(spec: str, characters: int) -> Iterator[Record]:
    seen = 0
    for record in islice(read_source(spec), characters):
        yield record
        seen += sum(map(len, texts_of(record)))
        if seen >= characters:
            return
