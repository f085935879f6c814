"""``bitexport doctor --env``: what this machine has for building, running and training, and what it lacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bitexport.environment.build import check_cmake, check_compiler, check_native
from bitexport.environment.check import Check
from bitexport.environment.frameworks import check_accelerator, check_torch
from bitexport.environment.hardware import check_cpu, check_disk, check_memory, check_threads
from bitexport.environment.packages import check_packages, check_python

__all__ = ["PROBES", "Check", "EnvironmentReport", "environment"]

Probe = Callable[[], Sequence[Check]]

#: The checks, in the order of the report. None of them uses the network.
PROBES: tuple[tuple[str, Probe], ...] = (
    ("python", check_python),
    ("packages", check_packages),
    ("compiler", check_compiler),
    ("cmake", check_cmake),
    ("native library", check_native),
    ("cpu", check_cpu),
    ("threads", check_threads),
    ("memory", check_memory),
    ("disk", check_disk),
    ("torch", check_torch),
    ("accelerator", check_accelerator),
)


@dataclass(frozen=True)
class EnvironmentReport:
    """What :func:`environment` found, in the order of :data:`PROBES`."""

    checks: tuple[Check, ...]

    def with_status(self, status: str) -> list[str]:
        """The names of the checks whose status is ``"ok"``, ``"warning"`` or ``"problem"``."""
        return [check.name for check in self.checks if check.status == status]

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object, without ``schema``."""
        return {
            "problems": self.with_status("problem"),
            "warnings": self.with_status("warning"),
            "checks": [asdict(check) for check in self.checks],
        }


def environment(probes: Sequence[tuple[str, Probe]] = PROBES) -> EnvironmentReport:
    """Examine the machine. A probe that raises is itself a problem, and does not hide the others."""
    checks: list[Check] = []
    for name, probe in probes:
        try:
            checks.extend(probe())
        except Exception as error:
            checks.append(
                Check(
                    name,
                    f"could not be examined: {type(error).__name__}: {error}",
                    "problem",
                    "This check assumes something that is different on this machine.",
                    "report this line as a bug",
                )
            )
    return EnvironmentReport(tuple(checks))
