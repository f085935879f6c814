"""The machinery of the torture, with planted faults that it must find, and a few cases of some kinds."""

from __future__ import annotations

import importlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.repository import REPOSITORY
from tests.torture.kinds import NAMES
from tests.torture.schedule import Plan, Schedule, Tally, summary

MIB = 1 << 20
Execute = Callable[[random.Random, Path, Path], str]


def planted(
    execute: Execute, *, again: Execute | None = None, seconds: float = 5, cases: int = 6
) -> ModuleType:
    """A kind with this case."""
    kind = ModuleType("kinds.planted")
    kind.SHARE, kind.SECONDS, kind.MEMORY, kind.CASES = 1, seconds, 64 * MIB, cases
    kind.prepare = lambda folder: (folder / "shared").write_text("shared")
    kind.execute = execute
    if again:
        kind.again = again
    return kind


def tortured(kind: ModuleType, folder: Path, *, jobs: int = 2, start: int = 0) -> Tally:
    plan = Plan(1, 60, kind.CASES, {"planted": start}, folder / "findings", jobs)
    schedule = Schedule([kind], plan, folder / "scratch")
    schedule.run()
    return schedule.tallies["planted"]


def mostly_good(bad: Callable[[], object]) -> Execute:
    """Does something bad in some cases, and leaves a file."""

    def execute(chance: random.Random, prepared: Path, folder: Path) -> str:
        number = chance.randrange(1000)
        assert (prepared / "shared").read_text() == "shared"
        assert list(folder.iterdir()) == []
        (folder / "input").write_text(str(number))
        if number % 3 == 0:
            bad()
        return "worked" if number % 2 else "refused"

    return execute


def raise_error() -> None:
    raise KeyError("planted")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def take_memory() -> None:
    block = bytearray(200 * MIB)
    block[::4096] = b"\1" * len(block[::4096])


def ask_for_memory() -> None:
    bytearray(2 << 30)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (raise_error, "KeyError: 'planted'"),
        (die, "its process ended with SIGKILL"),
        (lambda: time.sleep(100), "took more than 1 s"),
        (take_memory, "MiB to its process"),
        (ask_for_memory, "MemoryError"),
    ],
)
def test_planted_faults_are_found(bad: Callable[[], object], reason: str, tmp_path: Path) -> None:
    kind = planted(mostly_good(bad), seconds=1)
    tally = tortured(kind, tmp_path)
    assert tally.findings
    assert all(reason in why for _, why in tally.findings)
    assert tally.cases == kind.CASES
    assert tally.count("worked") + tally.count("refused") + len(tally.findings) == kind.CASES
    for number, _ in tally.findings:
        kept = tmp_path / "findings" / f"planted-1-{number}"
        expected = random.Random(f"1/planted/{number}").randrange(1000)
        assert (kept / "scratch" / "input").read_text() == str(expected)
        command = (kept / "command.txt").read_text()
        assert f"make torture KINDS=planted SEED=1 START={number} CASES=1" in command
    # from its number alone, the same case is bad again
    number = tally.findings[0][0]
    kind.CASES = number + 1
    assert [found for found, _ in tortured(kind, tmp_path / "again", start=number).findings] == [number]
    assert f"{len(tally.findings)} finding" in summary({"planted": tally}, 1)


def test_a_death_without_the_protection_is_done_again_with_it(tmp_path: Path) -> None:
    refused = tortured(planted(mostly_good(die), again=lambda *_: "refused, protected"), tmp_path / "a")
    assert refused.count("refused, protected") > 0
    assert not refused.findings
    unexplained = tortured(planted(mostly_good(die), again=lambda *_: "worked"), tmp_path / "b")
    assert [why for _, why in unexplained.findings] == ["its process ended with SIGKILL"] * refused.count(
        "refused, protected"
    )


def test_a_busy_machine_is_no_finding(tmp_path: Path) -> None:
    marker = tmp_path / "slept"

    def sleep_once() -> None:
        if not marker.exists():
            marker.touch()
            time.sleep(5)

    tally = tortured(planted(mostly_good(sleep_once), seconds=2), tmp_path)
    assert (tally.findings, tally.cases) == ([], 6)


def test_what_a_case_starts_ends_with_it(tmp_path: Path) -> None:
    def start_and_die(_chance: random.Random, _prepared: Path, folder: Path) -> str:
        child = subprocess.Popen(["sleep", "1000"])
        (tmp_path / "pid").write_text(str(child.pid))
        die()
        raise AssertionError(folder)

    tortured(planted(start_and_die, cases=1), tmp_path)
    left = Path(f"/proc/{(tmp_path / 'pid').read_text()}/status")
    until = time.monotonic() + 20
    while not ended(left) and time.monotonic() < until:
        time.sleep(0.05)
    assert ended(left)


def ended(status: Path) -> bool:
    """Whether a process is gone, or waits only for its parent to see its end."""
    try:
        return "zombie" in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_the_names_are_those_of_the_modules() -> None:
    folder = Path(__file__).parent / "kinds"
    assert {file.stem for file in folder.glob("*.py")} == {"__init__", *NAMES}
    for name in NAMES:
        kind = importlib.import_module(f"tests.torture.kinds.{name}")
        assert kind.SHARE > 0
        assert kind.SECONDS > 0
        assert kind.MEMORY > 0


def test_a_few_cases(tmp_path: Path) -> None:
    """The other kinds run in continuous integration."""
    arguments = ["--kinds", "gguf_files", "--cases", "12", "--jobs", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.torture", *arguments, "--findings", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    cases, refused, worked, findings = map(int, done.stdout.splitlines()[1].split()[1:5])
    assert cases == refused + worked == 12
    assert refused > 0
    assert findings == 0
