"""``bitexport bench --compare``: a ternary file against twins of itself in other types, in alternation.

Every file runs in its own process, read into memory; each round times all of them one after another, with the
machine's limits measured before and after. What counts is the ratio within a round.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bitexport.bench.limits import MAX_CHANGE, LimitMeter
from bitexport.bench.measure import BenchTest, check_numbers, make_tests
from bitexport.bench.report import CompareReport, CompareRow
from bitexport.bench.twins import SAME_FILE, build_twin, check_twin, compared_type, default_twins, twin_bytes
from bitexport.bench.worker import Worker
from bitexport.errors import OutputError, UnsupportedError
from bitexport.gguf.fingerprint import fingerprint
from bitexport.gguf.reader import GGUFFile, read_gguf
from bitexport.progress import Progress, ProgressEvent, ignore
from bitexport.runtime.ggml import TIER_VARIABLE
from bitexport.runtime.limits import check_threads
from bitexport.runtime.threads import default_threads
from bitexport.system.machine import available_bytes, cpu_model

#: The twins' environment: output head and layers on ggml's own kernels, as llama.cpp would run them.
_TWIN_ENVIRONMENT = {"BITEXPORT_HEAD": "stock", "BITEXPORT_GROUPED": "stock"}

#: Roughly what a process needs in addition to its weights: Python, context, work buffers.
_PROCESS_BYTES = 400 << 20


def compare(
    gguf: str | os.PathLike[str],
    *,
    types: Sequence[str] = (),
    threads: Sequence[int] = (),
    prompt_tokens: Sequence[int] = (512,),
    generated_tokens: Sequence[int] = (128,),
    rounds: int = 5,
    keep: str | os.PathLike[str] | None = None,
    progress: Progress = ignore,
) -> CompareReport:
    """Build twins of a ternary file and time them all in alternating rounds.

    Args:
        gguf: the file.
        types: of the twins, some of :data:`~bitexport.bench.twins.TWIN_TYPES`, or
            :data:`~bitexport.bench.twins.SAME_FILE`; empty for those of
            :func:`~bitexport.bench.twins.default_twins`.
        threads, prompt_tokens, generated_tokens: as in :func:`~bitexport.bench.measure.bench`.
        rounds: how often each test runs on each file.
        keep: folder for the twins; an existing twin is reused if it is newer than the file. If None, a
            temporary folder, removed at the end.
        progress: called with the bytes that each twin is made from, then for the tests.

    Raises:
        UsageError: there is nothing to measure, a type is unknown, or our kernels run no tensor of the file.
        UnsupportedError: a twin's type cannot store the model, or memory for all files is missing.
        OutputError: there is no disk space for the twins.
        GGUFError, NativeLibraryError: a file cannot be loaded.
    """
    path = Path(gguf)
    file = read_gguf(path)
    counts = list(threads) or [default_threads()]
    tests = make_tests(prompt_tokens, generated_tokens, (1,))
    check_numbers(tests, counts, rounds)
    for count in counts:
        check_threads(count)
    types = list(dict.fromkeys(name.lower() for name in types or default_twins(file)))
    own = compared_type(file)
    for name in types:
        check_twin(file, name)
    sizes = {own: sum(t.nbytes for t in file.tensors), **{name: twin_bytes(file, name) for name in types}}
    _check_memory(sizes)
    with _twin_folder(keep) as folder, ExitStack() as stack:
        files = {own: path, **_twins(file, types, folder, progress)}
        length = max(test.tokens for test in tests)
        workers = {}
        for name, twin in files.items():
            progress(ProgressEvent(0, 0, "tests", f"loading {name}"))
            workers[name] = stack.enter_context(
                Worker(twin, length, {} if name == own else _TWIN_ENVIRONMENT)
            )
        rows = _measure(workers, own, tests, counts, rounds, progress)
        return CompareReport(
            path=str(path),
            model=workers[own].model,
            tier=workers[own].tier,
            tier_forced=bool(os.environ.get(TIER_VARIABLE)),
            bytes=sizes,
            rows=rows,
            kept=[] if keep is None else [str(files[name]) for name in types if name != SAME_FILE],
            cpu=cpu_model(),
            fingerprint=fingerprint(path),
        )


def _measure(
    workers: dict[str, Worker],
    own: str,
    tests: Sequence[BenchTest],
    counts: Sequence[int],
    rounds: int,
    progress: Progress,
) -> list[CompareRow]:
    meter = LimitMeter()
    rows: list[CompareRow] = []
    total = len(counts) * len(tests) * (rounds + 1)
    done = 0
    for count in counts:
        for test in tests:
            seconds: list[dict[str, float]] = []
            changes: list[float] = []
            for number in range(rounds + 1):
                progress(ProgressEvent(done, total, "rounds", f"{test.name}, {count} threads"))
                before = meter.measure(count)
                found = {name: worker.seconds(test, count) for name, worker in workers.items()}
                if number:  # the first round is a warm-up
                    seconds.append(found)
                    changes.append(before.change(meter.measure(count)))
                done += 1
            rows += _rows(test, count, own, seconds, changes)
    return rows


def _rows(
    test: BenchTest, threads: int, own: str, seconds: list[dict[str, float]], changes: list[float]
) -> list[CompareRow]:
    calm = [found for found, change in zip(seconds, changes, strict=True) if change <= MAX_CHANGE]
    counted = calm or seconds
    rows = []
    for name in counted[0]:
        ratios = [found[name] / found[own] for found in counted] if name != own else []
        rows.append(
            CompareRow(
                type=name,
                test=test.name,
                threads=threads,
                tokens_per_second=test.tokens / statistics.median(found[name] for found in counted),
                ratio=statistics.median(ratios) if ratios else None,
                ratio_min=min(ratios, default=None),
                ratio_max=max(ratios, default=None),
                rounds=len(counted),
                disturbed_rounds=len(seconds) - len(calm),
                disturbed=not calm,
            )
        )
    return rows


def _twins(file: GGUFFile, types: Sequence[str], folder: Path, progress: Progress) -> dict[str, Path]:
    # the parts of a split model are found by its name, which a link's target may not have
    source = file.path.resolve() if len(file.parts) == 1 else file.path
    twins = {name: folder / f"{source.stem}-{name}.gguf" for name in types}
    if SAME_FILE in twins:
        twins[SAME_FILE] = source
    missing = {
        name: twin for name, twin in twins.items() if name != SAME_FILE and not _is_current(twin, file.parts)
    }
    need = sum(twin_bytes(file, name) for name in missing)
    have = shutil.disk_usage(folder).free
    if need > have:
        raise OutputError(
            f"the {', '.join(missing)} twins need {_gib(need)} in {folder}, which has {_gib(have)}; "
            "name a folder on another disk with --keep, or compare fewer types with --compare"
        )
    for name, twin in missing.items():
        twin.unlink(missing_ok=True)
        build_twin(source, twin, name, progress)
    return twins


def _is_current(twin: Path, sources: Sequence[Path]) -> bool:
    return twin.exists() and twin.stat().st_mtime >= max(source.stat().st_mtime for source in sources)


@contextmanager
def _twin_folder(keep: str | os.PathLike[str] | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="bitexport-twins-") as temporary:
            yield Path(temporary)
    else:
        folder = Path(keep)
        if not folder.is_dir():
            raise OutputError(f"{folder} is not a folder; create it first, or leave out --keep")
        yield folder


def _check_memory(sizes: dict[str, int]) -> None:
    need = sum(sizes.values()) + len(sizes) * _PROCESS_BYTES
    have = available_bytes()
    if have is not None and need > have:
        raise UnsupportedError(
            f"{', '.join(sizes)} loaded together need about {_gib(need)} of memory, but only {_gib(have)} "
            f"is free; compare fewer types: --compare {min(list(sizes)[1:], key=lambda name: sizes[name])}"
        )


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
