"""The default number of threads, and the thread pool."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import bitexport
from bitexport.errors import UsageError
from bitexport.runtime.session import Session
from bitexport.runtime.threads import cpu_quota, default_threads, physical_cores
from tests.support.repository import REPOSITORY

NO_ROOM_FOR_THREADS = """
import resource, sys
from pathlib import Path
from bitexport.errors import NativeLibraryError
from bitexport.runtime.session import Session
with Session(sys.argv[1], n_ctx=64, n_threads=2) as session:
    session.advance([1])
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (16 << 20)  # less than the stacks of 15 threads
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        session.set_threads(16)
    except NativeLibraryError as error:
        print(error)
    session.advance([2])
"""

STILL_OPEN = """
import sys
import torch
from bitexport.runtime.session import Session
sys.kept = Session(sys.argv[1], n_ctx=64, n_threads=2)  # outlives every module
sys.kept.advance([1])
"""


def _topology(folder: Path, siblings: dict[int, str]) -> Path:
    for cpu, names in siblings.items():
        (folder / f"cpu{cpu}/topology").mkdir(parents=True)
        (folder / f"cpu{cpu}/topology/thread_siblings_list").write_text(names + "\n")
    return folder


def test_hardware_threads_of_a_core_count_once(tmp_path: Path) -> None:
    topology = _topology(tmp_path, {0: "0,4", 1: "1,5", 4: "0,4", 5: "1,5"})
    assert physical_cores({0, 1, 4, 5}, topology) == 2
    assert physical_cores({0, 4}, topology) == 1
    assert physical_cores({1, 4}, topology) == 2


def test_processors_of_unknown_topology_count_one_by_one(tmp_path: Path) -> None:
    assert physical_cores({0, 1, 2}, tmp_path) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000", None),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("10000 100000", 1),
        ("nonsense", None),
        ("1 0", None),
    ],
)
def test_the_quota_of_a_container(tmp_path: Path, text: str, expected: int | None) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert cpu_quota(tmp_path, tmp_path / "missing") == expected
    (tmp_path / "membership").write_text("0::/\n")
    assert cpu_quota(tmp_path, tmp_path / "membership") == expected


def test_the_smallest_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    (tmp_path / "outer/inner").mkdir(parents=True)
    (tmp_path / "outer/cpu.max").write_text("250000 100000")
    (tmp_path / "outer/inner/cpu.max").write_text("max 100000")
    (tmp_path / "membership").write_text("0::/outer/inner\n")
    assert cpu_quota(tmp_path, tmp_path / "membership") == 3
    (tmp_path / "outer/inner/cpu.max").write_text("50000 100000")
    assert cpu_quota(tmp_path, tmp_path / "membership") == 1


def test_the_quota_of_cgroups_v1(tmp_path: Path) -> None:
    group = tmp_path / "cpu/mine"
    group.mkdir(parents=True)
    (tmp_path / "membership").write_text("4:memory:/other\n1:cpu,cpuacct:/mine\n0::/\n")
    assert cpu_quota(tmp_path, tmp_path / "membership") is None
    (group / "cpu.cfs_period_us").write_text("100000")
    (group / "cpu.cfs_quota_us").write_text("-1")
    assert cpu_quota(tmp_path, tmp_path / "membership") is None
    (group / "cpu.cfs_quota_us").write_text("150000")
    assert cpu_quota(tmp_path, tmp_path / "membership") == 2


def test_a_path_that_only_the_host_sees(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000")
    (tmp_path / "membership").write_text("0::/kubepods/pod1/container\n")
    assert cpu_quota(tmp_path, tmp_path / "membership") == 1


def test_no_quota_without_a_container(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path, tmp_path / "missing") is None


def test_the_default_is_within_the_process_limits() -> None:
    assert 1 <= default_threads() <= len(os.sched_getaffinity(0))


def _threads_of_this_process() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_a_session_keeps_its_threads_and_ends_them(gguf_of: Callable[..., Path]) -> None:
    gguf = gguf_of()
    before = _threads_of_this_process()
    with Session(gguf, n_threads=3) as session:
        session.advance([1, 2, 3])
        assert _threads_of_this_process() == before + 2
        session.advance([4])
        assert _threads_of_this_process() == before + 2
        session.set_threads(2)
        session.advance([5])
        assert _threads_of_this_process() == before + 1
    assert _threads_of_this_process() == before


def test_a_loaded_llama_keeps_its_threads_and_ends_them(gguf_of: Callable[..., Path]) -> None:
    gguf = gguf_of()
    before = _threads_of_this_process()
    model = bitexport.load(gguf, n_threads=2, n_threads_batch=3, n_ctx=64)
    model.eval([1, 2, 3])
    assert _threads_of_this_process() == before + 2
    model.close()
    assert _threads_of_this_process() == before


def test_too_many_threads_are_rejected(gguf_of: Callable[..., Path]) -> None:
    gguf = gguf_of()
    with pytest.raises(UsageError, match="threads were requested"):
        Session(gguf, n_threads=100_000)


def test_threads_that_cannot_be_started_are_an_error(gguf_of: Callable[..., Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_ROOM_FOR_THREADS, str(gguf_of())],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "16 threads could not be started; ask for fewer\n"


def test_load_with_zero_threads_uses_the_default(gguf_of: Callable[..., Path]) -> None:
    model = bitexport.load(gguf_of(), n_threads=0, n_threads_batch=0, n_ctx=64)
    assert (model.n_threads, model.n_threads_batch) == (default_threads(), default_threads())
    model.eval([1, 2, 3])
    model.close()


def test_load_rejects_impossible_thread_counts(gguf_of: Callable[..., Path]) -> None:
    for count in (-1, 100_000):
        with pytest.raises(UsageError, match=f"{count} threads were requested"):
            bitexport.load(gguf_of(), n_threads=count, n_ctx=64)


def test_contexts_that_compute_at_the_same_time(gguf_of: Callable[..., Path]) -> None:
    """Together they have more threads than there are processors."""
    gguf = gguf_of()
    prompts = [[1, 2, 3, index] for index in range(4)]

    def last_logits(prompt: list[int]) -> bytes:
        with Session(gguf, n_ctx=64, n_threads=2) as session:
            session.advance(prompt)
            for token in range(20):
                session.advance([token])
            return session.feed([5]).tobytes()

    alone = [last_logits(prompt) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        assert list(pool.map(last_logits, prompts)) == alone


def test_a_program_may_end_without_closing_its_model(gguf_of: Callable[..., Path]) -> None:
    """Threads that were still running when the libraries cleaned up caused a segmentation fault."""
    done = subprocess.run(
        [sys.executable, "-c", STILL_OPEN, gguf_of("packed-multiply")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
