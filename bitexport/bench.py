"""Tokens a second, and how near that is to what the machine's memory allows."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitexport.errors import UsageError
from bitexport.gguf.embeddings import OUTPUT_HEAD, TOKEN_EMBEDDING
from bitexport.gguf.reader import read_gguf
from bitexport.machine import MemoryReader, resident_bytes, warm_page_cache
from bitexport.progress import Progress, ProgressEvent, ignore
from bitexport.runtime.ggml import processors
from bitexport.runtime.model import Session

#: More than the last-level cache that a few threads can call their own.
_CACHE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One test at one thread count.

    Attributes:
        test: ``pp128`` for a prompt of 128 tokens at once, ``tg32`` for 32 tokens one by one.
        threads: how many computed.
        tokens_per_second, stddev: mean and sample standard deviation over the repetitions.
        memory_read_gbps: how fast as many threads read memory in the same run, 1e9 bytes/s; decode only.
        percent_of_bandwidth: how much of that the weights read for a token amount to; decode only.
    """

    test: str
    threads: int
    tokens_per_second: float
    stddev: float
    memory_read_gbps: float | None = None
    percent_of_bandwidth: float | None = None


@dataclass(frozen=True)
class BenchReport:
    """What :func:`bench` measured.

    Attributes:
        path: the file.
        model: what llama.cpp calls it.
        tier: the kernels that ran.
        parameters: weights in the model.
        weight_bytes: bytes of its tensors in the file.
        bytes_per_token: of these, what a decoded token reads: all but an embedding that is only looked up.
        rows: in the order of measurement.
        load_seconds: from the file, in the page cache, to a context that can run.
        rss_bytes: memory of the process with the model loaded and run.
        rss_before_bytes: memory of the process before it was loaded.
    """

    path: str
    model: str
    tier: str
    parameters: int
    weight_bytes: int
    bytes_per_token: int
    rows: list[BenchRow]
    load_seconds: float
    rss_bytes: int
    rss_before_bytes: int

    @property
    def fits_caches(self) -> bool:
        """Whether a token reads so little that it may never come from memory."""
        return self.bytes_per_token < _CACHE_BYTES

    @property
    def fastest_decode(self) -> BenchRow | None:
        """The decode row with the most tokens a second."""
        decodes = [row for row in self.rows if row.memory_read_gbps is not None]
        return max(decodes, key=lambda row: row.tokens_per_second, default=None)

    def to_json(self) -> dict[str, Any]:
        """The contract's keys, then more; memory speed and percentage are those of the fastest decode row."""
        fastest = self.fastest_decode
        document = asdict(self)
        return {
            "model": document.pop("model"),
            "rows": document.pop("rows"),
            "load_seconds": document.pop("load_seconds"),
            "rss_bytes": document.pop("rss_bytes"),
            "memory_read_gbps": fastest.memory_read_gbps if fastest else None,
            "percent_of_bandwidth": fastest.percent_of_bandwidth if fastest else None,
            "fits_caches": self.fits_caches,
            **document,
        }


def bench(
    gguf: str | os.PathLike[str],
    *,
    threads: Sequence[int] = (),
    prompt_tokens: Sequence[int] = (512,),
    generated_tokens: Sequence[int] = (128,),
    repetitions: int = 5,
    progress: Progress = ignore,
) -> BenchReport:
    """Measure prefill and decode as llama-bench does: random tokens, an empty context, one run to warm up.

    Args:
        gguf: the file.
        threads: thread counts; one a processor when empty.
        prompt_tokens: sizes of the prefill tests.
        generated_tokens: sizes of the decode tests.
        repetitions: timed runs of each test.
        progress: told of every test.

    Raises:
        UsageError: there is nothing to measure, or a size is not positive.
        GGUFError, NativeLibraryError: the file cannot be loaded.
    """
    counts = list(threads) or [processors()]
    tests = [("pp", size) for size in prompt_tokens] + [("tg", size) for size in generated_tokens]
    if not tests or min(repetitions, *counts, *(size for _, size in tests)) < 1:
        raise UsageError("threads, sizes and repetitions must be 1 or more, and there must be a test")

    rss_before = resident_bytes()
    path = Path(gguf)
    bytes_per_token = _bytes_per_token(path)
    warm_page_cache(path)
    start = time.perf_counter()
    with Session(path, n_ctx=max(size for _, size in tests), exact=False) as session:
        load_seconds = time.perf_counter() - start
        session.advance([0])
        rss = resident_bytes()
        memory = MemoryReader()
        rows = []
        for done, (count, (kind, size)) in enumerate((c, test) for c in counts for test in tests):
            progress(ProgressEvent(done, len(counts) * len(tests), "tests", f"{kind}{size}, {count} threads"))
            session.set_threads(count)
            row = _measure(session, kind, size, count, repetitions, memory, bytes_per_token)
            rows.append(row)
        return BenchReport(
            path=str(path),
            model=session.description,
            tier=session.tier,
            parameters=session.parameters,
            weight_bytes=session.weight_bytes,
            bytes_per_token=bytes_per_token,
            rows=rows,
            load_seconds=load_seconds,
            rss_bytes=rss,
            rss_before_bytes=rss_before,
        )


def _bytes_per_token(path: Path) -> int:
    tensors = {tensor.name: tensor.nbytes for tensor in read_gguf(path).tensors}
    looked_up = tensors.get(TOKEN_EMBEDDING, 0) if OUTPUT_HEAD in tensors else 0
    return sum(tensors.values()) - looked_up


def _measure(
    session: Session,
    kind: str,
    size: int,
    threads: int,
    repetitions: int,
    memory: MemoryReader,
    bytes_per_token: int,
) -> BenchRow:
    ids = random.Random(0).choices(range(session.n_vocab), k=size)
    run = _prefill if kind == "pp" else _decode
    _speed(run, session, ids)
    # Before and after, because a shared machine changes its mind; the better one is the limit.
    read_speed = memory.gigabytes_per_second(threads) if kind == "tg" else None
    speeds = [_speed(run, session, ids) for _ in range(repetitions)]
    mean = statistics.fmean(speeds)
    percent = None
    if read_speed is not None:
        read_speed = max(read_speed, memory.gigabytes_per_second(threads))
        percent = 100 * mean * bytes_per_token / (read_speed * 1e9)
    stddev = statistics.stdev(speeds) if repetitions > 1 else 0.0
    return BenchRow(f"{kind}{size}", threads, mean, stddev, read_speed, percent)


def _speed(run: Callable[[Session, list[int]], None], session: Session, ids: list[int]) -> float:
    session.clear()
    start = time.perf_counter()
    run(session, ids)
    return len(ids) / (time.perf_counter() - start)


def _prefill(session: Session, ids: list[int]) -> None:
    session.advance(ids)


def _decode(session: Session, ids: list[int]) -> None:
    for token in ids:
        session.advance([token])
