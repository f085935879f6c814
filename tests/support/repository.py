"""Where things are in this repository."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TINY_PYTHON = REPOSITORY / "examples" / "tiny-python"
EN_FR = REPOSITORY / "examples" / "en-fr"
PROGRAMS = REPOSITORY / "tests" / "support" / "programs"
