from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitexport.errors import OutputError
from bitexport.train.loss_curve import plot


def test_a_run_becomes_a_picture(tmp_path: Path) -> None:
    steps = [{"step": i, "tokens": 900 * i, "loss": 6 - i / 5, "learning_rate": 1e-3 / i} for i in (1, 2, 3)]
    lines = [*steps, {"step": 3, "tokens": 2700, "held_out_loss": 5.6}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    picture = tmp_path / "loss.png"
    plot(tmp_path / "log.jsonl", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 200_000


def test_no_log_and_an_empty_log(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"log\.jsonl: No such file"):
        plot(tmp_path / "log.jsonl", tmp_path / "loss.png")
    (tmp_path / "log.jsonl").touch()
    with pytest.raises(OutputError, match="no step has been logged yet"):
        plot(tmp_path / "log.jsonl", tmp_path / "loss.png")
