"""The data of a stage: sources, split, tokenized, as examples to train on and examples held out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from bitexport.errors import UsageError
from bitexport.records import Pair, Record, Template, encode, read_sources, render, side_of, split
from train.config import TrainConfig
from train.plan import Examples, Listed, Windows

# Of a stream; what is at hand is held out whole.
_HELD_OUT_TOKENS = 200_000
_DOCUMENTS_AT_ONCE = 256


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
    specs: list[str], config: TrainConfig, template: Template, tokenizer: Any, folder: Path
) -> Data:
    """Everything that ``specs`` name. Template "plain" packs it into windows, others keep records apart.

    A stream of a hub is tokenized into ``folder``/tokens.bin first, as many tokens as stage 2 may see, so
    that every pass, every process and a resumed run read the same.

    Raises:
        UsageError: nothing on one side of the split, or nothing that fits.
    """
    length = config.sequence_length
    if template.name == "plain" and any(spec.startswith("hub:") for spec in specs):
        return _windows(_from_stream(specs, config, tokenizer, folder), config, ["", ""], "")
    parted = split(read_sources(specs), config.held_out_percent)
    sides = parted.train, parted.held_out
    counts = [f"{len(side):,} records" for side in sides]
    left_out = f"; left out: {parted.duplicates:,} equal to another"
    left_out += f", {parted.too_close:,} too close to training"
    if template.name == "plain":
        tokens = [_tokens(side, template, tokenizer) for side in sides]
        return _windows(tokens, config, [f"{count}, " for count in counts], left_out)
    listed = []
    for side in sides:
        found = [(record, encode(record, tokenizer, template, length)) for record in side]
        fitting = [(record, example) for record, example in found if example is not None]
        if not fitting:
            raise UsageError(f"data: no record fits into sequence_length = {length} tokens; raise it")
        left_out += f", {len(found) - len(fitting):,} longer than {length} tokens"
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


def write_held_out(records: Iterable[Record], template: Template, tokenizer: Any, path: Path) -> None:
    """The held-out records as ``bitexport eval --pairs`` reads them: JSON lines of prompt and answer."""
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            line = dict(zip(("prompt", "answer"), render(record, template, tokenizer), strict=True))
            line |= {"source": record.source} if isinstance(record, Pair) else {}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _tokens(records: Iterable[Record], template: Template, tokenizer: Any) -> np.ndarray:
    """All records in one run of token ids: the end token before the first and after each."""
    documents = _documents(records, template, tokenizer)
    return np.fromiter(chain([tokenizer.eos_token_id], chain.from_iterable(documents)), dtype=np.int64)


def _documents(records: Iterable[Record], template: Template, tokenizer: Any) -> Iterator[list[int]]:
    """Token ids of each record and the end token, tokenized many at once."""
    texts = ("".join(render(record, template, tokenizer)) for record in records)
    while waiting := list(islice(texts, _DOCUMENTS_AT_ONCE)):
        for ids in tokenizer(waiting, add_special_tokens=False, verbose=False)["input_ids"]:
            yield [*ids, tokenizer.eos_token_id]


def _from_stream(specs: list[str], config: TrainConfig, tokenizer: Any, folder: Path) -> list[np.ndarray]:
    """Training and held-out tokens, in files that are made once; uint32, memory-mapped."""
    paths = [folder / "tokens.bin", folder / "held_out.bin"]
    if not all(path.exists() for path in paths):
        limits = {"train": config.stage2_tokens or config.pretrain_tokens, "held_out": _HELD_OUT_TOKENS}
        counts = dict.fromkeys(limits, 0)
        template = template_of(config, "plain")
        temporary = [path.with_suffix(".tmp") for path in paths]
        with temporary[0].open("wb") as train, temporary[1].open("wb") as held_out:
            files = {"train": train, "held_out": held_out}
            for record in read_sources(specs):
                side = side_of(record, config.held_out_percent)
                if side is None or counts[side] >= limits[side]:
                    continue
                for ids in _documents([record], template, tokenizer):
                    np.array(ids, dtype=np.uint32).tofile(files[side])
                    counts[side] += len(ids)
                if counts["train"] >= limits["train"]:
                    break
        for source, target in zip(temporary, paths, strict=True):
            source.replace(target)
    return [np.memmap(path, dtype=np.uint32, mode="r") for path in paths]
