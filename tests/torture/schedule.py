"""Divides the time among the kinds, follows their workers, and counts."""

from __future__ import annotations

import select
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from tests.torture.findings import Finding
from tests.torture.workers import Job, Worker, in_child, kind_name

#: More findings of one kind say nothing new.
ENOUGH_FINDINGS = 100

#: The longest time for which a worker lives, and the shortest.
_SLICE_SECONDS = (2.0, 20.0)


@dataclass
class Tally:
    """What one kind did.

    Attributes:
        next: the number of the first case that was not begun.
        outcomes: how often each outcome occurred.
        findings: the reason and the number of each case that was one.
        seconds: the time of its workers, all together.
    """

    next: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def cases(self) -> int:
        """All that were done."""
        return self.outcomes.total() + len(self.findings)

    def count(self, word: str) -> int:
        """The cases whose outcome begins with a word."""
        return sum(count for outcome, count in self.outcomes.items() if outcome.startswith(word))


@dataclass(frozen=True)
class Plan:
    """What to do.

    Attributes:
        seed: of all cases.
        seconds: the time for all kinds together, divided by their ``SHARE``.
        cases: instead of the time: the number for each kind.
        next: where each kind begins.
        findings: the folder for inputs.
        jobs: how many workers there are at once.
    """

    seed: int
    seconds: float
    cases: int | None
    next: dict[str, int]
    findings: Path
    jobs: int


class Schedule:
    """Runs the kinds; the tallies are complete at any time.

    Args:
        kinds: the modules.
        plan: what to do.
        scratch: a folder for everything that the cases write.
    """

    def __init__(self, kinds: Sequence[ModuleType], plan: Plan, scratch: Path) -> None:
        self._plan = plan
        self._scratch = scratch
        self._jobs = {
            kind_name(kind): Job(kind, plan.seed, scratch / kind_name(kind) / "prepared") for kind in kinds
        }
        self.tallies = {name: Tally(plan.next.get(name, 0)) for name in self._jobs}
        self._last = {
            name: min(
                getattr(job.kind, "CASES", sys.maxsize),
                self.tallies[name].next + plan.cases if plan.cases is not None else sys.maxsize,
            )
            for name, job in self._jobs.items()
        }
        self._shortest, longest = _SLICE_SECONDS
        self._slice = min(max(plan.seconds * plan.jobs / 4 / len(kinds), self._shortest), longest)
        self._end = float("inf")
        self._running: Counter[str] = Counter()

    def run(self) -> None:
        """Run until the time is over, or all cases are done."""
        for job in self._jobs.values():
            job.prepared.mkdir(parents=True)
            if in_child(lambda job=job: job.kind.prepare(job.prepared)) != 0:
                raise SystemExit(f"the files of {job.name} could not be made")
        if self._plan.cases is None:
            self._end = time.monotonic() + self._plan.seconds
        slots = [_Slot(self._scratch / f"worker-{number}") for number in range(self._plan.jobs)]
        try:
            while True:
                for slot in slots:
                    self._fill(slot)
                busy = {slot.worker.replies: slot for slot in slots if slot.worker is not None}
                if not busy:
                    return
                wait = min(slot.worker.left() for slot in busy.values() if slot.worker is not None)
                for ready in select.select(list(busy), [], [], max(wait, 0))[0]:
                    self._take(busy.pop(ready))
                for slot in busy.values():
                    if slot.worker is not None and slot.worker.left() <= 0:
                        self._judge(slot, slot.worker.too_slow())
        finally:
            for slot in slots:
                self._close(slot)

    def _open_kinds(self) -> list[str]:
        return [
            name
            for name, tally in self.tallies.items()
            if tally.next < self._last[name] and len(tally.findings) < ENOUGH_FINDINGS
        ]

    def _fill(self, slot: _Slot) -> None:
        """Give a worker without a case the next one; another worker if its time is over."""
        if slot.worker is not None and slot.worker.case is not None:
            return
        names = self._open_kinds() if time.monotonic() < self._end else []
        if slot.worker is not None and (
            slot.worker.job.name not in names or time.monotonic() > slot.began + self._slice
        ):
            self._close(slot)
        if not names:
            self._close(slot)
            return
        if slot.worker is None:
            name = min(names, key=lambda name: self._spent(name) / self._jobs[name].kind.SHARE)
            self._start(slot, name)
        assert slot.worker is not None
        tally = self.tallies[slot.worker.job.name]
        slot.worker.begin(tally.next)
        tally.next += 1

    def _spent(self, name: str) -> float:
        return self.tallies[name].seconds + self._running[name] * self._slice

    def _start(self, slot: _Slot, name: str) -> None:
        job = self._jobs[name]
        self._running[name] += 1
        slot.worker = Worker(job, slot.folder)
        slot.began = time.monotonic()

    def _close(self, slot: _Slot, *, ended: bool = False) -> None:
        """End a slot's worker, if it has not ended, and note its time."""
        if slot.worker is None:
            return
        name = slot.worker.job.name
        self.tallies[name].seconds += time.monotonic() - slot.began
        self._running[name] -= 1
        if not ended:
            slot.worker.end()
        slot.worker = None

    def _take(self, slot: _Slot) -> None:
        """Take a worker's reply."""
        assert slot.worker is not None
        result = slot.worker.result()
        if isinstance(result, Finding):
            self._judge(slot, result)
        else:
            self.tallies[slot.worker.job.name].outcomes[result] += 1

    def _judge(self, slot: _Slot, finding: Finding) -> None:
        """Note a finding, unless a second look explains it; its worker has ended."""
        assert slot.worker is not None
        job = slot.worker.job
        protected = hasattr(job.kind, "again")
        self._close(slot, ended=True)
        if finding.late or (finding.died and protected):
            second = self._second_look(job, finding, again=finding.died and protected)
            if isinstance(second, str) and (finding.late or second.startswith("refused")):
                self.tallies[job.name].outcomes[second] += 1
                return
            finding = second if isinstance(second, Finding) else finding
        self.tallies[job.name].findings.append((finding.case, finding.reason))
        finding.keep(self._plan.findings)

    def _second_look(self, job: Job, finding: Finding, *, again: bool) -> str | Finding:
        """Do a case again, in a process of its own: protected, or because the machine may have been busy."""
        worker = Worker(job, self._scratch / "again")
        worker.begin(finding.case, again=again)
        ready, _, _ = select.select([worker.replies], [], [], job.kind.SECONDS)
        result = worker.result() if ready else worker.too_slow()
        if isinstance(result, str):
            worker.end()
            shutil.rmtree(worker.folder)
        return result


class _Slot:
    """A place for one worker at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.worker: Worker | None = None
        self.began = 0.0


def summary(tallies: dict[str, Tally], seed: int) -> str:
    """A table of the kinds, and what was found."""
    lines = [f"{'kind':<12}{'cases':>11}{'refused':>11}{'worked':>11}{'findings':>10}{'cases/s':>10}"]
    for name, tally in tallies.items():
        rate = tally.cases / tally.seconds if tally.seconds else 0.0
        refused, worked = tally.count("refused"), tally.count("worked")
        lines.append(
            f"{name:<12}{tally.cases:>11,}{refused:>11,}{worked:>11,}{len(tally.findings):>10,}{rate:>10,.1f}"
        )
    for name, tally in tallies.items():
        outcomes = ", ".join(f"{outcome} {count:,}" for outcome, count in tally.outcomes.most_common(6))
        lines.append(f"{name}: {outcomes}")
    reasons = Counter(f"{name}: {why}"[:150] for name, tally in tallies.items() for _, why in tally.findings)
    lines += [f"{count:>5} x {why}" for why, count in reasons.most_common(20)]
    found = sum(len(tally.findings) for tally in tallies.values())
    lines.append(f"seed {seed}: {found or 'no'} finding{'' if found == 1 else 's'}")
    return "\n".join(lines)
