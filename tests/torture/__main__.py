"""``python -m tests.torture``, which is ``make torture``. Exit status: 0 without findings, 1 with some."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from tests.torture.kinds import NAMES
from tests.torture.schedule import Plan, Schedule, summary
from tests.torture.workers import kind_name

MEMORY_FOLDER = Path("/dev/shm")


def main() -> None:
    arguments = _arguments()
    findings: Path = arguments.findings
    findings.mkdir(parents=True, exist_ok=True)
    progress = findings / "progress.json"
    before = _read_progress(progress, arguments.seed)
    names = [name for name in NAMES if name in arguments.kinds and name not in arguments.without]
    kinds = _usable([importlib.import_module(f"tests.torture.kinds.{name}") for name in names])
    if not kinds:
        sys.exit("no kind is left; name others with --kinds, or fewer with --without")
    _import_everything()
    start = before if arguments.resume else dict.fromkeys(names, arguments.start)
    plan = Plan(arguments.seed, arguments.seconds, arguments.cases, start, findings, arguments.jobs)
    where = MEMORY_FOLDER if MEMORY_FOLDER.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="torture-", dir=where, ignore_cleanup_errors=True) as scratch:
        os.environ["TMPDIR"] = scratch
        schedule = Schedule(kinds, plan, Path(scratch))
        for number in (signal.SIGINT, signal.SIGTERM):  # also in the background of a shell
            signal.signal(number, signal.default_int_handler)
        try:
            schedule.run()
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
    if arguments.cases is None:  # a case that is done again is no progress
        _write_progress(progress, arguments.seed, before, schedule)
    print(summary(schedule.tallies, arguments.seed))
    if any(tally.findings for tally in schedule.tallies.values()):
        print(f"inputs and commands are in {findings}")
        sys.exit(1)


def _write_progress(file: Path, seed: int, before: dict[str, int], schedule: Schedule) -> None:
    reached = {**before, **{name: tally.next for name, tally in schedule.tallies.items()}}
    file.write_text(json.dumps({"seed": seed, "next": reached}), encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Try to kill, fill, hang and fool bitexport.")
    parser.add_argument(
        "--seconds", type=float, default=300, help="time for all kinds together (default 300)"
    )
    parser.add_argument("--cases", type=int, help="cases of each kind, instead of a time")
    parser.add_argument(
        "--kinds", nargs="+", choices=NAMES, default=NAMES, metavar="KIND", help=", ".join(NAMES)
    )
    parser.add_argument(
        "--without", nargs="*", choices=NAMES, default=(), metavar="KIND", help="kinds to leave out"
    )
    parser.add_argument("--seed", type=int, default=1, help="of all cases (default 1)")
    parser.add_argument("--start", type=int, default=0, help="number of the first case (default 0)")
    parser.add_argument(
        "--resume", action="store_true", help="continue where the last run with this seed stopped"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="cases at once (default: one per core)"
    )
    parser.add_argument(
        "--findings", type=Path, default=Path("build/torture"), help="folder for what goes wrong"
    )
    return parser.parse_args()


def _usable(kinds: list[ModuleType]) -> list[ModuleType]:
    """The kinds that can run here; says why others cannot."""
    found = []
    for kind in kinds:
        problem = kind.missing() if hasattr(kind, "missing") else ""
        if problem:
            print(f"{kind_name(kind)} is left out: {problem}", file=sys.stderr)
        else:
            found.append(kind)
    return found


def _import_everything() -> None:
    """Import what cases would import, once for all workers, which are forked from this process."""
    from bitexport.runtime.library import bind

    bind()


def _read_progress(file: Path, seed: int) -> dict[str, int]:
    """Where each kind stopped; nothing if the file is missing or of another seed."""
    if not file.is_file():
        return {}
    found = json.loads(file.read_text(encoding="utf-8"))
    return dict(found["next"]) if found["seed"] == seed else {}


if __name__ == "__main__":
    main()
