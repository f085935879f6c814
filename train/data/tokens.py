"""Documents as one run of token ids: in memory, or from a stream into a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitexport.system.files import write_atomically
from bitexport.text.sources import Record, read_sources
from bitexport.text.split import side_of
from bitexport.text.templates import Template, render

Tokens = npt.NDArray[np.integer]
# The most held-out tokens of a stream. Data that is not streamed is held out without this limit.
_HELD_OUT_TOKENS = 200_000
_DOCUMENTS_AT_ONCE = 256


def tokens_of(records: Iterable[Record], template: Template, tokenizer: Any) -> Tokens:
    """All records in one run, int64 ``[tokens]``: the end token before the first and after each."""
    documents = _documents(records, template, tokenizer)
    return np.fromiter(chain([tokenizer.eos_token_id], chain.from_iterable(documents)), dtype=np.int64)


def stream_tokens(
    sources: Sequence[str], held_out_percent: int, limit: int, tokenizer: Any, folder: Path
) -> tuple[Tokens, Tokens]:
    """Training and held-out tokens of streamed documents, uint32, memory-mapped.

    They are written once, to ``folder``/tokens.bin and held_out.bin: every pass, every process and a resumed
    run reads the same. Files that other arguments left there are replaced; tokens.json records the arguments.

    Args:
        limit: the number of training tokens after which the stream is no longer read.
    """
    train_path = folder / "tokens.bin"
    held_out_path = folder / "held_out.bin"
    record_path = folder / "tokens.json"
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
    vocabulary_hash = hashlib.sha256(vocabulary).hexdigest()
    arguments = json.dumps([*sources, held_out_percent, limit, vocabulary_hash])
    if not record_path.exists() or record_path.read_text(encoding="utf-8") != arguments:
        record_path.unlink(missing_ok=True)
        paths = {"train": train_path, "held_out": held_out_path}
        _write_streams(sources, held_out_percent, limit, tokenizer, paths)
        write_atomically(record_path, arguments.encode())
    return _memory_map(train_path), _memory_map(held_out_path)


def _write_streams(
    sources: Sequence[str], held_out_percent: int, limit: int, tokenizer: Any, paths: dict[str, Path]
) -> None:
    """Write both sides under temporary names and rename them; ``paths`` has one for each side."""
    limits = {"train": limit, "held_out": _HELD_OUT_TOKENS}
    counts = {"train": 0, "held_out": 0}
    temporary = {side: path.with_suffix(".tmp") for side, path in paths.items()}
    try:
        with temporary["train"].open("wb") as train, temporary["held_out"].open("wb") as held_out:
            files = {"train": train, "held_out": held_out}
            for record in read_sources(sources):
                side = side_of(record, held_out_percent)
                if side is None or counts[side] >= limits[side]:
                    continue
                for ids in _documents([record], Template("plain"), tokenizer):
                    np.array(ids, dtype=np.uint32).tofile(files[side])
                    counts[side] += len(ids)
                if counts["train"] >= limit:
                    break
        for name, path in paths.items():
            temporary[name].replace(path)
    finally:  # also after a failure, for instance a full disk
        for path in temporary.values():
            path.unlink(missing_ok=True)


def _memory_map(path: Path) -> Tokens:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype=np.uint32)
    return np.memmap(path, dtype=np.uint32, mode="r")


def _documents(records: Iterable[Record], template: Template, tokenizer: Any) -> Iterator[list[int]]:
    """Token ids of each record followed by the end token; many records are tokenized at once."""
    texts = ("".join(render(record, template, tokenizer)) for record in records)
    while batch := list(islice(texts, _DOCUMENTS_AT_ONCE)):
        for ids in tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]:
            yield [*ids, tokenizer.eos_token_id]
