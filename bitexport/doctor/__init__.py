"""``bitexport doctor``: why does my model print garbage? The tree is in :mod:`bitexport.doctor.verdicts`."""

from __future__ import annotations

from bitexport.doctor.driver import DoctorReport, doctor
from bitexport.doctor.verdicts import VERDICTS, Verdict

__all__ = ["VERDICTS", "DoctorReport", "Verdict", "doctor"]
