"""Tokens per second, and how close they come to the machine's limits."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bitexport.bench.company import Company
from bitexport.bench.limits import LimitMeter
from bitexport.bench.report import BenchMachine, BenchReport, BenchRow
from bitexport.bench.weights import TokenCost, token_cost
from bitexport.errors import UsageError
from bitexport.gguf.fingerprint import fingerprint
from bitexport.progress import Progress, ProgressEvent, ignore
from bitexport.runtime.session import Session
from bitexport.runtime.threads import default_threads
from bitexport.system.machine import cpu_model, resident_bytes, warm_page_cache

#: llama.cpp's limit of sequences.
_MAX_BATCH = 256


@dataclass(frozen=True, slots=True)
class BenchTest:
    """What is timed.

    Attributes:
        kind: ``"pp"``: prefill, a prompt at once; ``"tg"``: decode, tokens one by one.
        tokens: number of tokens in each sequence.
        batch: number of sequences decoded together; 1 for a prompt.
    """

    kind: str
    tokens: int
    batch: int = 1

    @property
    def name(self) -> str:
        """As llama-bench writes it: ``pp512``, ``tg128``."""
        return f"{self.kind}{self.tokens}"


def bench(
    gguf: str | os.PathLike[str],
    *,
    threads: Sequence[int] = (),
    prompt_tokens: Sequence[int] = (512,),
    generated_tokens: Sequence[int] = (128,),
    batches: Sequence[int] = (1,),
    repetitions: int = 5,
    workers: str | Sequence[str] = (),
    layers: Sequence[int] = (),
    load: int = 0,
    progress: Progress = ignore,
) -> BenchReport:
    """Measure prefill and decode as llama-bench does: random tokens, an empty context, one warm-up run.

    Args:
        gguf: the file.
        threads: thread counts; one per core if empty.
        prompt_tokens: sizes of the prefill tests.
        generated_tokens: sizes of the decode tests.
        batches: numbers of sequences that each decode test runs together.
        repetitions: timed runs of each test.
        workers, layers: see :func:`bitexport.load`. A worker computes with as many threads as it was started
            with, and the limits of several machines are not measured.
        load: busy processes on this machine beside the measurement.
        progress: called for every test.

    Raises:
        WorkerError: a worker cannot be used, or was lost.
        UsageError: there is nothing to measure, or a size is not positive.
        GGUFError, NativeLibraryError: the file cannot be loaded.
    """
    counts = list(threads) or [default_threads()]
    tests = make_tests(prompt_tokens, generated_tokens, batches)
    check_numbers(tests, counts, repetitions)
    company = Company(load)
    rss_before = resident_bytes()
    path = Path(gguf)
    cost = token_cost(path)
    warm_page_cache(path)
    length = max(test.tokens for test in tests)
    start = time.perf_counter()
    with (
        Session(path, n_ctx=length, exact=False, workers=workers, layers=layers) as session,
        company,
    ):
        load_seconds = time.perf_counter() - start
        session.advance([0])
        rss = resident_bytes()
        with company.away():
            meter = LimitMeter() if session.workers is None else None
        rows = []
        # Single sequences first: a context for several takes more memory.
        runs = sorted(((count, test) for count in counts for test in tests), key=lambda run: run[1].batch > 1)
        for done, (count, test) in enumerate(runs):
            label = test.name if test.batch == 1 else f"{test.name} x {test.batch}"
            progress(ProgressEvent(done, len(runs), "tests", in_progress(label, count)))
            if test.batch > 1:
                session.reopen(length, count, test.batch)
            else:
                session.set_threads(count)
            rows.append(_measure(session, test, count, repetitions, meter, cost, company))
        return BenchReport(
            path=str(path),
            model=session.description,
            tier=session.tier,
            parameters=session.parameters,
            weight_bytes=session.weight_bytes,
            file_bytes_per_token=cost.file_bytes,
            bytes_per_token=cost.memory_bytes,
            multiply_adds_per_token=cost.multiply_adds,
            rows=rows,
            load_seconds=load_seconds,
            rss_bytes=rss,
            rss_before_bytes=rss_before,
            cpu=cpu_model(),
            fingerprint=fingerprint(path),
            machines=_machines(session, counts),
            load=load,
        )


def in_progress(what: str, threads: int) -> str:
    """The label of a measurement in the progress bar: ``pp512, 2 threads``."""
    return f"{what}, {threads} {'thread' if threads == 1 else 'threads'}"


def make_tests(
    prompt_tokens: Sequence[int], generated_tokens: Sequence[int], batches: Sequence[int]
) -> list[BenchTest]:
    """The prefill tests, then the decode tests in every batch size."""
    return [BenchTest("pp", size) for size in prompt_tokens] + [
        BenchTest("tg", size, batch) for size in generated_tokens for batch in batches
    ]


def check_numbers(tests: Sequence[BenchTest], threads: Sequence[int], repetitions: int) -> None:
    """Raise UsageError if there is nothing to measure, or a number is out of range."""
    if not tests or min(repetitions, *threads, *(min(test.tokens, test.batch) for test in tests)) < 1:
        raise UsageError(
            "threads, sizes, batches and repetitions must be 1 or more, and at least one test is needed"
        )
    largest = max(test.batch for test in tests)
    if largest > _MAX_BATCH:
        raise UsageError(f"batch {largest} is too large; llama.cpp decodes up to {_MAX_BATCH} together")


def _machines(session: Session, threads: Sequence[int]) -> list[BenchMachine]:
    if session.workers is None or session.placement is None:
        return []
    own, *others = session.placement.layers
    return [BenchMachine("this machine", own, max(threads), session.tier)] + [
        BenchMachine(state.address, layers, state.threads, state.tier)
        for state, layers in zip(session.workers.states(), others, strict=True)
    ]


def _measure(
    session: Session,
    test: BenchTest,
    threads: int,
    repetitions: int,
    meter: LimitMeter | None,
    cost: TokenCost,
    company: Company,
) -> BenchRow:
    time_test(session, test)
    if meter is None:
        speeds = [test.tokens * test.batch / time_test(session, test) for _ in range(repetitions)]
        return BenchRow(
            test=test.name,
            batch=test.batch,
            threads=threads,
            tokens_per_second=statistics.fmean(speeds),
            stddev=statistics.stdev(speeds) if repetitions > 1 else 0.0,
            fair_share=company.share(threads),
        )
    with company.away():
        before = meter.measure(threads)
    speeds = [test.tokens * test.batch / time_test(session, test) for _ in range(repetitions)]
    with company.away():
        after = meter.measure(threads)
    limit = before.best(after)
    mean = statistics.fmean(speeds)
    decode = test.kind == "tg"
    peak = limit.multiply_add_gps if not decode or test.batch > 1 else None
    steps = mean / test.batch
    return BenchRow(
        test=test.name,
        batch=test.batch,
        threads=threads,
        tokens_per_second=mean,
        stddev=statistics.stdev(speeds) if repetitions > 1 else 0.0,
        memory_read_gbps=limit.memory_gbps if decode else None,
        percent_of_bandwidth=steps * cost.memory_bytes / limit.memory_gbps / 1e7 if decode else None,
        multiply_add_gps=peak,
        percent_of_multiply_adds=None if peak is None else mean * cost.multiply_adds / peak / 1e7,
        limit_change=before.change(after),
        fair_share=company.share(threads),
    )


def time_test(session: Session, test: BenchTest) -> float:
    """Seconds for one run of a test, from an empty context, with the same tokens every time."""
    draw = random.Random(0)
    ids = draw.choices(range(session.n_vocab), k=test.tokens * test.batch)
    run: Callable[[Session, list[int], int], None]
    run = _prefill if test.kind == "pp" else _decode if test.batch == 1 else _decode_together
    session.clear()
    start = time.perf_counter()
    run(session, ids, test.batch)
    return time.perf_counter() - start


def _prefill(session: Session, ids: list[int], _batch: int) -> None:
    session.advance(ids)


def _decode(session: Session, ids: list[int], _batch: int) -> None:
    for token in ids:
        session.advance([token])


def _decode_together(session: Session, ids: list[int], batch: int) -> None:
    for first in range(0, len(ids), batch):
        session.advance_together(ids[first : first + batch])
