"""examples/en-fr/reproduce.py: its tables, and the marks that show where they belong."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.support.repository import REPOSITORY


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(REPOSITORY / "examples" / "en-fr" / "reproduce.py"))


def result(bleu: float, **more: Any) -> dict[str, Any]:
    column = {"translation": {"bleu": bleu, "chrf": 60.0}, "pairs": {"perplexity": 2.5}}
    sizes = {"pairs": 1000, "tokens": 1_600_000, "seconds": 480.0, "file_bytes": 2.8e6, "matrix_bytes": 6e5}
    return {"columns": [column, column], **sizes, **more}


def test_a_row_per_model(script: dict[str, Any]) -> None:
    row = {"teacher": 1000.0, "student": 2500.0, "ratio": 2.5, "range": [2.25, 2.75]}
    lines = script["table"](
        {"teacher": result(50.0), "c-1": result(45.0, speed={"pp64": row, "tg64": row})}
    ).splitlines()
    assert lines[0] == "1,000 held-out pairs."
    quality = "45.00 | 45.00 | 60.00 | 60.00 | 2.500 | 2.500 | 90.0% | 100.0% |"
    assert f"| (c) stages 1, 2 and 3 | 1 | {quality}" in lines
    assert "| teacher, full precision |  | 1,600,000 | 8 | 2.80 MB | 0.60 MB |  |  |" in lines
    speed = "2,500/s, 2.50 (2.25 to 2.75)"
    assert f"| (c) stages 1, 2 and 3 | 1 | 1,600,000 | 8 | 2.80 MB | 0.60 MB | {speed} | {speed} |" in lines


def test_only_the_text_between_the_marks_is_replaced(
    script: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = script["PAGE"].read_text(encoding="utf-8")
    page = tmp_path / "distillation.md"
    page.write_text(original, encoding="utf-8")
    monkeypatch.setitem(script["write_page"].__globals__, "PAGE", page)
    script["write_page"]("THE TABLES")
    first, last = script["MARKS"]
    before, after = original.partition(first)[0], original.partition(last)[2]
    assert page.read_text(encoding="utf-8") == f"{before}{first}\n\nTHE TABLES\n\n{last}{after}"
    page.write_text(original.replace(last, ""), encoding="utf-8")
    with pytest.raises(SystemExit, match="expected each of these marks once"):
        script["write_page"]("THE TABLES")
