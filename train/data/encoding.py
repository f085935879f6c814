"""Records as token ids, in the order in which they are read, by several processes."""

from __future__ import annotations

import ctypes
import hashlib
import json
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitexport.errors import UsageError
from bitexport.text import Document, Record, Template, render, texts_of
from bitexport.text.split import hash_of, key_sides, keys_of, would_hold_out
from bitexport.text.templates import check_tokenizer

# Records, and characters of text, that are encoded together.
_RECORDS_AT_ONCE = 500
_CHARACTERS_AT_ONCE = 1 << 20
# Chunks that this process encodes before it starts others: short data is encoded sooner than they start.
_CHUNKS_ALONE = 16
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class EncodedChunk:
    """Records of one source.

    Attributes:
        source: the number of the source.
        tokens: uint32, of all records one after another, each with its end token.
        lengths: uint32 ``[records]``, in tokens.
        prompts: uint32 ``[records]``, the tokens of the prompt at the beginning of each.
        digests: uint64 ``[records, 2]``, the beginning of each record's SHA-256.
        keys: uint64 ``[records, 2]``, hashes of the texts that must not occur on both sides of the split.
        chosen: bool ``[records, 2]``, whether each of these would be held out.
        pairs: of each record that may be held out, prompt, answer and source as a line of JSON; else "".
    """

    source: int
    tokens: npt.NDArray[np.uint32]
    lengths: npt.NDArray[np.uint32]
    prompts: npt.NDArray[np.uint32]
    digests: npt.NDArray[np.uint64]
    keys: npt.NDArray[np.uint64]
    chosen: npt.NDArray[np.bool_]
    pairs: list[str]


@dataclass(frozen=True)
class Encoder:
    """How records become token ids, and which of them may be held out; see :func:`bitexport.text.split`."""

    tokenizer: Any
    template: Template
    held_out_percent: int
    labels: bool = False

    def encode(self, source: int, records: Sequence[Record]) -> EncodedChunk:
        """Raises UsageError if the template does not take a record."""
        prompts, answers = self._ids(records)
        end = [self.tokenizer.eos_token_id]
        tokens: list[int] = []
        for prompt, answer in zip(prompts, answers, strict=True):
            tokens += prompt
            tokens += answer
            tokens += end
        prompt_lengths = np.array([len(ids) for ids in prompts], dtype=np.uint32)
        answer_lengths = np.array([len(ids) + 1 for ids in answers], dtype=np.uint32)
        digests = b"".join(hashlib.sha256(repr(record).encode()).digest()[:16] for record in records)
        keys = np.array([_two_hashes(record, self.labels) for record in records], dtype=np.uint64)
        chosen = would_hold_out(keys, self.held_out_percent)
        for number, record in enumerate(records):
            if isinstance(record, Document) and record.name:
                chosen[number] = key_sides(record, self.held_out_percent)
        return EncodedChunk(
            source,
            np.array(tokens, dtype=np.uint32),
            prompt_lengths + answer_lengths,
            prompt_lengths,
            np.frombuffer(digests, dtype=">u8").astype(np.uint64).reshape(-1, 2),
            keys,
            chosen,
            [
                self._pair(record) if held and self.template.name != "plain" else ""
                for record, held in zip(records, chosen[:, 0].tolist(), strict=True)
            ],
        )

    def _ids(self, records: Sequence[Record]) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of every record's prompt and answer, without the end token.

        Tokenized separately, because at inference the prompt comes alone; template "plain" has no prompts.
        """
        texts = [render(record, self.template, self.tokenizer) for record in records]
        if self.template.name == "plain":
            return [[]] * len(texts), self._tokenize(["".join(text) for text in texts])
        ids = self._tokenize([part for text in texts for part in text])
        return ids[::2], ids[1::2]

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = self.tokenizer(
            texts, add_special_tokens=False, verbose=False, return_attention_mask=False
        )["input_ids"]
        return found

    def _pair(self, record: Record) -> str:
        prompt, answer = render(record, self.template, self.tokenizer)
        return json.dumps([prompt, answer, getattr(record, "source", None)])


def chunks_of(source: int, records: Iterable[Record]) -> Iterator[tuple[int, list[Record]]]:
    """Records of a source in lists of a bounded size, each with the number of the source."""
    chunk: list[Record] = []
    characters = 0
    for record in records:
        chunk.append(record)
        characters += sum(map(len, texts_of(record)))
        if len(chunk) == _RECORDS_AT_ONCE or characters > _CHARACTERS_AT_ONCE:
            yield source, chunk
            chunk = []
            characters = 0
    if chunk:
        yield source, chunk


def encode_chunks(
    chunks: Iterable[tuple[int, list[Record]]], encoder: Encoder, workers: int = 0
) -> Generator[EncodedChunk, None, None]:
    """Encode chunks in order; no more than a few per process are in memory.

    Args:
        workers: processes; 0: one for each CPU that this process may use.

    Raises:
        UsageError: the tokenizer lacks a token that the template needs, or does not take a record; or a
            process was ended from outside.
    """
    check_tokenizer(encoder.tokenizer, encoder.template)
    if sys.platform != "linux":  # elsewhere forks are not safe, or there are none
        workers = 1
    workers = workers or len(os.sched_getaffinity(0))
    remaining = iter(chunks)
    for _ in range(_CHUNKS_ALONE if workers > 1 else 0):
        chunk = next(remaining, None)
        if chunk is None:
            return
        yield encoder.encode(*chunk)
    if workers == 1:
        yield from (encoder.encode(*chunk) for chunk in remaining)
    else:
        yield from _encode_in_processes(remaining, encoder, workers)


def _encode_in_processes(
    chunks: Iterator[tuple[int, list[Record]]], encoder: Encoder, workers: int
) -> Iterator[EncodedChunk]:
    waiting: deque[Future[EncodedChunk]] = deque()
    # Forked, so that each has the tokenizer at once; they use no threads of this process, and no accelerator.
    executor = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("fork"),
        initializer=_begin_worker,
        initargs=(encoder, os.getpid()),
    )
    try:
        for chunk in chunks:
            waiting.append(executor.submit(_encode, chunk))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UsageError(
            "data: a process that tokenizes was ended, perhaps for lack of memory; free some and start again"
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


_encoder: Encoder | None = None  # of a worker


def _begin_worker(encoder: Encoder, parent: int) -> None:
    global _encoder
    _encoder = encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread each
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops them
    # When the parent is killed, they end, too: they would wait forever for work.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _encode(chunk: tuple[int, list[Record]]) -> EncodedChunk:
    assert _encoder is not None
    return _encoder.encode(*chunk)


def _two_hashes(record: Record, labels: bool) -> tuple[int, int]:
    hashes = [hash_of(key) for key in keys_of(record, labels)]
    return hashes[0], hashes[-1]
