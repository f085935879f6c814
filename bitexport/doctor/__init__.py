"""``bitexport doctor``: why does my model print garbage? The tree is in :mod:`bitexport.doctor.verdicts`.

What it needs is imported when it is asked for: :mod:`bitexport.environment` must be able to say that
torch is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitexport.doctor.driver import DoctorReport, doctor
    from bitexport.doctor.verdicts import VERDICTS, Verdict

__all__ = ["VERDICTS", "DoctorReport", "Verdict", "doctor"]


def __getattr__(name: str) -> Any:
    if name in ("VERDICTS", "Verdict"):
        from bitexport.doctor import verdicts

        return getattr(verdicts, name)
    if name in ("DoctorReport", "doctor"):
        from bitexport.doctor import driver

        return getattr(driver, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
