"""``bitexport doctor``: why does my model print garbage? See the tree in :mod:`bitexport.doctor.verdicts`."""

from __future__ import annotations

from bitexport.doctor.driver import doctor
from bitexport.doctor.report import DoctorReport
from bitexport.doctor.verdicts import VERDICTS, Verdict

__all__ = ["VERDICTS", "DoctorReport", "Verdict", "doctor"]
