"""The generated tables of supported models: complete, and recognised when they are out of date."""

from __future__ import annotations

import dataclasses
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bitexport.families import FAMILIES
from bitexport.gguf.packers import PACKERS
from tests.support.repository import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "support_table.py"
PAGE, TIERS = (runpy.run_path(str(SCRIPT))[name].relative_to(REPOSITORY) for name in ("PAGE", "TIERS"))


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def run(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, copy / "scripts" / SCRIPT.name, *arguments],
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_outdated_table_is_found_and_rewritten(tmp_path: Path) -> None:
    for name in (SCRIPT.relative_to(REPOSITORY), TIERS, PAGE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    assert run(tmp_path).returncode == 0
    page = tmp_path / PAGE
    good = page.read_text()
    assert run(tmp_path, "--check").returncode == 0
    for old, new in (("`q2_0`", "`q9_0`"), ("`avx2`", "`avx3`"), ("`Qwen2ForCausalLM`", "`Qwen9`")):
        page.write_text(good.replace(old, new))
        rejected = run(tmp_path, "--check")
        assert rejected.returncode == 1
        assert "out of date; run scripts/support_table.py" in rejected.stderr
    assert run(tmp_path).returncode == 0
    assert page.read_text() == good
    page.write_text("no markers")
    assert "lacks one of the two markers" in run(tmp_path).stderr


def test_every_entry_has_its_row(script: dict[str, Any]) -> None:
    region = script["region"]()
    for family in FAMILIES:
        assert f"| {family.name} |" in region
    for name in PACKERS:
        assert f"| `{name}`" in region
    tiers = [line for line in script["TIERS"].read_text().splitlines() if line.startswith("TERNARY_TIER(")]
    assert script["tiers"]().count("\n") == len(tiers) + 1


def test_a_new_entry_appears(script: dict[str, Any]) -> None:
    new = dataclasses.replace(FAMILIES[0], name="New", summary="its summary")
    script["families"].__globals__["FAMILIES"] = (*FAMILIES, new)
    assert "| New | `BitNetForCausalLM` | its summary | `bitnet-b1.58` |" in script["region"]()
