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
# Of a stream; what is at hand is held out whole.
_HELD_OUT_TOKENS = 200_000
_DOCUMENTS_AT_ONCE = 256


def tokens_of(records: Iterable[Record], template: Template, tokenizer: Any) -> Tokens:
    """All records in one run, int64 ``[tokens]``: the end token before the first and after each."""
    documents = _documents(records, template, tokenizer)
    return np.fromiter(chain([tokenizer.eos_token_id], chain.from_iterable(documents)), dtype=np.int64)


def stream_tokens(
    specs: Sequence[str], held_out_percent: int, limit: int, tokenizer: Any, folder: Path
) -> list[Tokens]:
    """Training and held-out tokens of streamed documents, uint32, memory-mapped.

    They are written to ``folder``/tokens.bin and held_out.bin once: every pass, every process and a resumed
    run reads the same. What other arguments left there is written anew; tokens.json says which they were.

    Args:
        limit: training tokens after which the stream is left.
    """
    paths = [folder / "tokens.bin", folder / "held_out.bin"]
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
    made_of = json.dumps([*specs, held_out_percent, limit, hashlib.sha256(vocabulary).hexdigest()])
    said = folder / "tokens.json"
    if not said.exists() or said.read_text(encoding="utf-8") != made_of:
        said.unlink(missing_ok=True)
        limits = {"train": limit, "held_out": _HELD_OUT_TOKENS}
        counts = dict.fromkeys(limits, 0)
        temporary = [path.with_suffix(".tmp") for path in paths]
        try:
            with temporary[0].open("wb") as train, temporary[1].open("wb") as held_out:
                files = {"train": train, "held_out": held_out}
                for record in read_sources(specs):
                    side = side_of(record, held_out_percent)
                    if side is None or counts[side] >= limits[side]:
                        continue
                    for ids in _documents([record], Template("plain"), tokenizer):
                        np.array(ids, dtype=np.uint32).tofile(files[side])
                        counts[side] += len(ids)
                    if counts["train"] >= limit:
                        break
            for source, target in zip(temporary, paths, strict=True):
                source.replace(target)
        finally:  # whatever stopped it, a full disk for instance
            for path in temporary:
                path.unlink(missing_ok=True)
        write_atomically(said, made_of.encode())
    return [_mapped(path) for path in paths]


def _mapped(path: Path) -> Tokens:
    if not path.stat().st_size:  # an empty file cannot be mapped
        return np.empty(0, dtype=np.uint32)
    return np.memmap(path, dtype=np.uint32, mode="r")


def _documents(records: Iterable[Record], template: Template, tokenizer: Any) -> Iterator[list[int]]:
    """Token ids of each record and the end token, tokenized many at once."""
    texts = ("".join(render(record, template, tokenizer)) for record in records)
    while waiting := list(islice(texts, _DOCUMENTS_AT_ONCE)):
        for ids in tokenizer(waiting, add_special_tokens=False, verbose=False)["input_ids"]:
            yield [*ids, tokenizer.eos_token_id]
