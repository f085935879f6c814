"""docs/config.md is generated from TrainConfig, and an outdated one is detected."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path
from typing import Any

import pytest

from bitexport.train.config import TrainConfig
from tests.support.repository import REPOSITORY


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(REPOSITORY / "scripts" / "config_reference.py"))


def test_every_key_has_a_row_with_its_default(script: dict[str, Any]) -> None:
    page = script["page"]()
    for field in dataclasses.fields(TrainConfig):
        assert page.count(f"\n| `{field.name}` |") == 1
    assert '| `data` | list of strings | `["stdlib"]` | sources of pretraining and stage 3 |' in page
    assert '| `optimizer` | `"adamw"`, `"muon"` | `"adamw"` | "muon" uses Muon for the matrices' in page


def test_an_outdated_page_is_found(
    script: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "config.md"
    monkeypatch.setitem(script["main"].__globals__, "PAGE", page)
    monkeypatch.setattr("sys.argv", ["config_reference.py"])
    script["main"]()
    monkeypatch.setattr("sys.argv", ["config_reference.py", "--check"])
    script["main"]()
    page.write_text(page.read_text().replace("`seed`", "`sead`"))
    with pytest.raises(SystemExit, match="out of date; run scripts/config_reference"):
        script["main"]()
