"""Tokens of a stage's data on disk, memory-mapped: made once, read by every stage, process and later run.

A folder of the cache appears under its name only when it is complete, so that a build that was killed leaves
nothing that is read later; a lock lets one process build while others wait.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from bitexport.progress import Progress, ProgressEvent, ignore
from bitexport.text import Template, read_source
from bitexport.text.split import empty_side
from bitexport.train.data.cache_key import cache_key
from bitexport.train.data.encoding import EncodedChunk, Encoder, chunks_of, encode_chunks
from bitexport.train.data.mixture import Mixture

# The most held-out tokens of a stream. Data that is not streamed is held out without this limit.
_HELD_OUT_TOKENS = 200_000
_TOKENS = "tokens.bin"
_PAIRS = "held_out.jsonl"
_INDEX = ("offsets", "prompts", "sources", "train", "held_out")
_META = "meta.json"


@dataclass(frozen=True)
class TokenCache:
    """The tokens of all records, and which of them are on which side of the split.

    Attributes:
        tokens: uint32 ``[tokens]``.
        offsets: int64 ``[records + 1]``, where each record begins.
        prompts: uint32 ``[records]``, the tokens of the prompt at the beginning of each.
        sources: uint8 ``[records]``, the number of the source of each.
        train, held_out: uint32, numbers of the records of either side, in order.
        duplicates: records dropped because they equal another one.
        too_close: records dropped from those held out because they share a text with training.
        folder: of these files.
    """

    tokens: npt.NDArray[np.uint32]
    offsets: npt.NDArray[np.int64]
    prompts: npt.NDArray[np.uint32]
    sources: npt.NDArray[np.uint8]
    train: npt.NDArray[np.uint32]
    held_out: npt.NDArray[np.uint32]
    duplicates: int
    too_close: int
    folder: Path

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Of every record, in tokens, with its end token."""
        return np.diff(self.offsets)

    def held_out_pairs(self) -> list[tuple[str, str, str | None]]:
        """Prompt, answer and source text of the records of ``held_out``; none with the template "plain"."""
        lines = (self.folder / _PAIRS).read_text(encoding="utf-8").split("\n")[:-1]
        return [tuple(json.loads(line)) for line in lines]


def open_cache(
    mixture: Mixture,
    template: Template,
    held_out_percent: int,
    tokenizer: Any,
    folder: Path,
    *,
    labels: bool = False,
    limit: int = 0,
    workers: int = 0,
    progress: Progress = ignore,
) -> TokenCache:
    """The tokens of the sources, from ``folder``, which is filled first if it does not have them.

    Without a limit the split is that of :func:`bitexport.text.split`, and each side is in its order.

    Args:
        labels: as for the split.
        limit: reads no more than this many training tokens, of a mixture in parts as large as the weights.
            The side of each record is then that of :func:`bitexport.text.side_of`, and the order that in
            which they were read. 0 reads everything.
        workers: processes that tokenize; 0: one for each CPU.

    Raises:
        UsageError: one side is empty, or what reading a source raises.
        OSError: the disk is full; nothing incomplete is left.
    """
    key = cache_key(mixture, template, held_out_percent, tokenizer, limit, labels)
    complete = folder / key
    folder.mkdir(parents=True, exist_ok=True)
    if not complete.is_dir():
        with _locked(folder / f"{key}.lock"):
            if not complete.is_dir():  # another process may have finished it meanwhile
                _build(
                    mixture,
                    Encoder(tokenizer, template, held_out_percent, labels),
                    complete,
                    limit,
                    workers,
                    progress,
                )
    return _open(complete)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait until no other process holds the lock; one that is killed loses it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open(folder: Path) -> TokenCache:
    meta = json.loads((folder / _META).read_text(encoding="utf-8"))
    path = folder / _TOKENS
    # An empty file cannot be mapped.
    tokens = np.memmap(path, np.uint32, "r") if path.stat().st_size else np.empty(0, np.uint32)
    index = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _INDEX}
    return TokenCache(tokens=tokens, **index, **meta, folder=folder)


def _build(
    mixture: Mixture, encoder: Encoder, complete: Path, limit: int, workers: int, progress: Progress
) -> None:
    for left in complete.parent.glob(
        f"{complete.name}.*.part"
    ):  # of a process that was killed: we have the lock
        shutil.rmtree(left)
    part = complete.with_name(f"{complete.name}.{os.getpid()}.part")
    part.mkdir()
    try:
        with (part / _TOKENS).open("wb") as tokens, (part / "candidates.jsonl").open("w+b") as candidates:
            builder = _Builder(tokens, candidates)
            for number, spec in enumerate(mixture.specs):
                part_of_limit = (
                    limit if mixture.weights is None else int(np.ceil(limit * mixture.weights[number]))
                )
                chunks = encode_chunks(chunks_of(number, read_source(spec)), encoder, workers)
                with contextlib.closing(chunks):  # ends the processes when enough is read
                    enough = builder.read(chunks, part_of_limit, progress)
                if enough and mixture.weights is None:
                    break
            builder.finish(part, streamed=limit > 0, percent=encoder.held_out_percent)
        (part / "candidates.jsonl").unlink()
        for path in part.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        part.rename(complete)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


class _Builder:
    """Writes tokens and keeps, of each record, the 50 bytes or so that decide its side and its place."""

    def __init__(self, tokens: BinaryIO, candidates: BinaryIO) -> None:
        self.tokens = tokens
        self.candidates = candidates  # lines of records that may be held out
        self.kept: list[EncodedChunk] = []  # without tokens and lines
        self.lines: list[npt.NDArray[np.int64]] = []  # per record, where its line begins; -1: none
        self.records = 0

    def read(self, chunks: Iterable[EncodedChunk], limit: int, progress: Progress) -> bool:
        """Add a source, up to ``limit`` training tokens; whether there were as many. 0: all."""
        train_tokens = 0
        held_out_tokens = 0
        for chunk in chunks:
            keep = np.ones(len(chunk.lengths), dtype=bool)
            if limit:
                agree = chunk.chosen[:, 0] == chunk.chosen[:, 1]
                for side, most in ((False, limit - train_tokens), (True, _HELD_OUT_TOKENS - held_out_tokens)):
                    on_side = agree & (chunk.chosen[:, 0] == side)
                    before = np.cumsum(np.where(on_side, chunk.lengths, 0)) - chunk.lengths
                    keep &= ~on_side | (before < most)
                keep &= agree
                train_tokens += int(chunk.lengths[keep & ~chunk.chosen[:, 0]].sum())
                held_out_tokens += int(chunk.lengths[keep & chunk.chosen[:, 0]].sum())
            self._add(chunk, keep)
            progress(ProgressEvent(self.records, 0, "records", "tokenizing"))
            if limit and train_tokens >= limit:
                return True
        return False

    def _add(self, chunk: EncodedChunk, keep: npt.NDArray[np.bool_]) -> None:
        tokens = chunk.tokens if keep.all() else chunk.tokens[np.repeat(keep, chunk.lengths)]
        tokens.tofile(self.tokens)
        lines = np.full(len(keep), -1, dtype=np.int64)
        for number in np.flatnonzero(keep & chunk.chosen[:, 0]):
            if chunk.pairs[number]:
                lines[number] = self.candidates.tell()
                self.candidates.write(chunk.pairs[number].encode() + b"\n")
        self.lines.append(lines[keep])
        self.records += int(keep.sum())
        self.kept.append(
            dataclasses.replace(
                chunk,
                tokens=tokens[:0].copy(),
                lengths=chunk.lengths[keep],
                prompts=chunk.prompts[keep],
                digests=chunk.digests[keep],
                keys=chunk.keys[keep],
                chosen=chunk.chosen[keep],
                pairs=[],
            )
        )

    def finish(self, folder: Path, *, streamed: bool, percent: int) -> None:
        """Split the records and write everything but the tokens."""
        counts = [len(chunk.lengths) for chunk in self.kept]
        sources = np.repeat(np.array([chunk.source for chunk in self.kept], dtype=np.uint8), counts)
        lengths = _joined([chunk.lengths for chunk in self.kept], (0,))
        prompts = _joined([chunk.prompts for chunk in self.kept], (0,))
        digests = _joined([chunk.digests for chunk in self.kept], (0, 2))
        keys = _joined([chunk.keys for chunk in self.kept], (0, 2))
        chosen = _joined([chunk.chosen for chunk in self.kept], (0, 2))[:, 0].astype(bool)
        self.kept.clear()
        if streamed:
            train, held_out = np.flatnonzero(~chosen), np.flatnonzero(chosen)
            dropped = (0, 0)
        else:
            train, held_out, dropped = split_by_hash(digests, keys, chosen, percent)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        arrays: tuple[npt.NDArray[Any], ...] = (offsets, prompts, sources, train, held_out)
        for name, array in zip(_INDEX, arrays, strict=True):
            dtype = np.uint32 if name in ("train", "held_out") else array.dtype
            np.save(folder / f"{name}.npy", array.astype(dtype))
        meta = {"duplicates": dropped[0], "too_close": dropped[1]}
        (folder / _META).write_text(json.dumps(meta), encoding="utf-8")
        self._write_pairs(folder / _PAIRS, _joined(self.lines, (0,))[held_out])

    def _write_pairs(self, path: Path, lines: npt.NDArray[Any]) -> None:
        self.candidates.flush()
        with path.open("wb") as file:
            for line in lines[lines >= 0].tolist():
                self.candidates.seek(line)
                file.write(self.candidates.readline())


def split_by_hash(
    digests: npt.NDArray[np.uint64], keys: npt.NDArray[np.uint64], chosen: npt.NDArray[np.bool_], percent: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], tuple[int, int]]:
    """What :func:`bitexport.text.split` does, from hashes; the arguments are those of :class:`EncodedChunk`.

    Args:
        chosen: bool ``[records]``: whether the first text of each would be held out.

    Returns:
        The numbers of the records of both sides, in order; and how many were dropped as equal to another
        record, and as too close to training.

    Raises:
        UsageError: a side is empty.
    """
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (digests[order[1:]] != digests[order[:-1]]).any(axis=1)
    ordered = order[is_first]
    train = ordered[~chosen[ordered]]
    candidates = ordered[chosen[ordered]]
    held_out = candidates[~np.isin(keys[candidates], keys[train].ravel()).any(axis=1)]
    if not len(train) or not len(held_out):
        raise empty_side(len(train), len(held_out), percent, len(candidates) > len(held_out))
    return train, held_out, (len(order) - len(ordered), len(candidates) - len(held_out))


def _joined(arrays: list[npt.NDArray[Any]], empty: tuple[int, ...]) -> npt.NDArray[Any]:
    return np.concatenate(list(chain(arrays, [np.empty(empty, arrays[0].dtype if arrays else np.uint32)])))
