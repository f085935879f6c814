"""``bitexport bench --compare`` and ``--against``: a file against others, in alternation.

They are twins of it in other types, or other programs. Every file runs in its own process, read into memory,
and every program in a process for each round. A round times all of them one after another, with the machine's
limits measured before and after. What counts is the ratio within a round.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bitexport.bench.company import Company
from bitexport.bench.intervals import median_interval
from bitexport.bench.limits import MAX_CHANGE, LimitMeter
from bitexport.bench.measure import BenchTest, check_numbers, in_progress, make_tests
from bitexport.bench.peer import Peer
from bitexport.bench.report import CompareReport, CompareRow, PeerReport
from bitexport.bench.twins import (
    ALL_TWINS,
    COMPARED_TYPES,
    SAME_FILE,
    TWIN_TYPES,
    build_twin,
    check_twin,
    compared_type,
    default_twins,
    is_compared,
    twin_bytes,
)
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

#: What the file is called beside other programs if our ternary kernels do not run it.
OWN_NAME = "bitexport"

#: Roughly what a process needs in addition to its weights: Python, context, work buffers.
_PROCESS_BYTES = 400 << 20


def compare(
    gguf: str | os.PathLike[str],
    *,
    types: Sequence[str] = (),
    against: Sequence[str] = (),
    threads: Sequence[int] = (),
    prompt_tokens: Sequence[int] = (512,),
    generated_tokens: Sequence[int] = (128,),
    rounds: int = 5,
    keep: str | os.PathLike[str] | None = None,
    load: int = 0,
    progress: Progress = ignore,
) -> CompareReport:
    """Build twins of a ternary file and time them all, and other programs, in alternating rounds.

    Args:
        gguf: the file.
        types: of the twins, some of :data:`~bitexport.bench.twins.TWIN_TYPES`, or
            :data:`~bitexport.bench.twins.SAME_FILE`; ``"all"`` for those of
            :func:`~bitexport.bench.twins.default_twins`, as also if there are neither types nor programs.
        against: command lines of programs that measure as llama-bench does; see
            :mod:`bitexport.bench.peer`.
        threads, prompt_tokens, generated_tokens: as in :func:`~bitexport.bench.measure.bench`.
        rounds: how often each test runs on each file.
        keep: folder for the twins; an existing twin is reused if it is newer than the file. If None, a
            temporary folder, removed at the end.
        load: busy processes beside the measurement.
        progress: called with the bytes that each twin is made from, then for the tests.

    Raises:
        UsageError: there is nothing to measure, a type or a program is unknown, or our kernels run no tensor
            of the file.
        BitexportError: a program failed; the message has its last line.
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
    peers = _named(against)
    types = list(dict.fromkeys(name.lower() for name in types))
    if ALL_TWINS in types or not (types or peers):
        types = list(default_twins(file))
    own = compared_type(file) if types or is_compared(file) else OWN_NAME
    for name in types:
        check_twin(file, name)
    sizes = {own: sum(t.nbytes for t in file.tensors), **{name: twin_bytes(file, name) for name in types}}
    company = Company(load)
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
        stack.enter_context(company)
        rows = _measure({**workers, **peers}, own, tests, counts, rounds, company, progress)
        answers = {name: peer.answer for name, peer in peers.items() if peer.answer is not None}
        return CompareReport(
            path=str(path),
            model=workers[own].model,
            tier=workers[own].tier,
            tier_forced=bool(os.environ.get(TIER_VARIABLE)),
            bytes={**sizes, **{name: each.bytes for name, each in answers.items() if each.bytes is not None}},
            rows=rows,
            kept=[] if keep is None else [str(files[name]) for name in types if name != SAME_FILE],
            cpu=cpu_model(),
            fingerprint=fingerprint(path),
            peers=[
                PeerReport(name, peers[name].command, each.model, each.build)
                for name, each in answers.items()
            ],
            load=load,
        )


def _named(commands: Sequence[str]) -> dict[str, Peer]:
    """The programs by names that differ from each other and from those of files."""
    found: dict[str, Peer] = {}
    files = (OWN_NAME, SAME_FILE, *COMPARED_TYPES, *TWIN_TYPES)
    for command in commands:
        peer = Peer(command)
        same = sum(each.name == peer.name for each in found.values()) + (peer.name in files)
        found[f"{peer.name} {same + 1}" if same else peer.name] = peer
    return found


def _measure(
    workers: dict[str, Worker | Peer],
    own: str,
    tests: Sequence[BenchTest],
    counts: Sequence[int],
    rounds: int,
    company: Company,
    progress: Progress,
) -> list[CompareRow]:
    with company.away():
        meter = LimitMeter()
    rows: list[CompareRow] = []
    total = len(counts) * len(tests) * (rounds + 1)
    done = 0
    for count in counts:
        for test in tests:
            seconds: list[dict[str, float]] = []
            changes: list[float] = []
            for number in range(rounds + 1):
                progress(ProgressEvent(done, total, "rounds", in_progress(test.name, count)))
                with company.away():
                    before = meter.measure(count)
                found = {name: worker.seconds(test, count) for name, worker in workers.items()}
                if number:  # the first round is a warm-up
                    seconds.append(found)
                    with company.away():
                        changes.append(before.change(meter.measure(count)))
                done += 1
            rows += _rows(test, count, own, seconds, changes, company.share(count))
    return rows


def _rows(
    test: BenchTest,
    threads: int,
    own: str,
    seconds: list[dict[str, float]],
    changes: list[float],
    fair_share: float = 1.0,
) -> list[CompareRow]:
    calm = [found for found, change in zip(seconds, changes, strict=True) if change <= MAX_CHANGE]
    counted = calm or seconds
    rows = []
    for name in counted[0]:
        ratios = [found[name] / found[own] for found in counted] if name != own else []
        sure = median_interval(ratios) if ratios else None
        rows.append(
            CompareRow(
                type=name,
                test=test.name,
                threads=threads,
                tokens_per_second=test.tokens / statistics.median(found[name] for found in counted),
                ratio=None if sure is None else sure.median,
                ratio_min=min(ratios, default=None),
                ratio_max=max(ratios, default=None),
                rounds=len(counted),
                disturbed_rounds=len(seconds) - len(calm),
                disturbed=not calm,
                ratio_low=None if sure is None else sure.low,
                ratio_high=None if sure is None else sure.high,
                confidence=None if sure is None else sure.confidence,
                fair_share=fair_share,
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
