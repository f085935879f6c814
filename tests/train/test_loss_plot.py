from __future__ import annotations

from pathlib import Path

import pytest

from bitexport.errors import OutputError
from train.loss_plot import plot


def test_a_run_becomes_a_picture(teacher: Path, tmp_path: Path) -> None:
    picture = tmp_path / "loss.png"
    plot(teacher / "pretrain" / "log.jsonl", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 200_000


def test_no_log_and_an_empty_log(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"log\.jsonl: No such file"):
        plot(tmp_path / "log.jsonl", tmp_path / "loss.png")
    (tmp_path / "log.jsonl").touch()
    with pytest.raises(OutputError, match="no step has been logged yet"):
        plot(tmp_path / "log.jsonl", tmp_path / "loss.png")
