"""The generated table of other projects' types: complete, and recognised when it is out of date."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from bitexport.gguf.foreign_types import READABLE
from tests.support.repository import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "foreign_files.py"


def test_an_outdated_table_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = runpy.run_path(str(SCRIPT))
    page = tmp_path / "page.md"
    monkeypatch.setitem(script["main"].__globals__, "PAGE", page)
    good = (REPOSITORY / "docs" / "foreign-files.md").read_text(encoding="utf-8")
    page.write_text(good.replace("IQ2_BN", "IQ9_BN"), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["foreign_files.py", "--check"])
    with pytest.raises(SystemExit, match=r"out of date; run scripts/foreign_files\.py"):
        script["main"]()
    monkeypatch.setattr(sys, "argv", ["foreign_files.py"])
    script["main"]()
    assert page.read_text(encoding="utf-8") == good


def test_every_type_that_is_read_has_its_row() -> None:
    region = runpy.run_path(str(SCRIPT))["region"]()
    for kind in READABLE:
        assert f"| {kind.id}" in region
