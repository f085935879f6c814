from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bitexport.errors import OutputError, UsageError
from train.__main__ import main
from train.evaluate import held_out_perplexity
from train.pretrain import pretrain, read_log

from .conftest import tiny_config, write_sources


def losses(run: Path) -> dict[float, float]:
    return {line["step"]: line["loss"] for line in read_log(run / "log.jsonl") if "loss" in line}


def test_twenty_steps_lower_the_loss(finished_run: Path) -> None:
    found = losses(finished_run)
    assert list(found) == list(range(1, 21))
    assert found[1] == pytest.approx(5.7, abs=0.2)  # ln 300: nothing known yet
    assert found[20] < found[1] - 1


def test_what_a_run_leaves_behind(finished_run: Path) -> None:
    log = read_log(finished_run / "log.jsonl")
    assert [line["step"] for line in log if "held_out_loss" in line] == [10, 20]
    assert log[0]["tokens"] == 8 * 32
    rates = [line["learning_rate"] for line in log if "learning_rate" in line]
    assert max(rates) == 5e-3
    assert rates[-1] < 2e-3
    result = json.loads((finished_run / "result.json").read_text(encoding="utf-8"))
    assert result["loss"] == pytest.approx(log[-1]["held_out_loss"], rel=1e-3)
    text_dir = str(finished_run.parent / "sources")
    assert held_out_perplexity(finished_run / "master", 20, 32, text_dir) == pytest.approx(result)


def test_a_resumed_run_repeats_the_losses(finished_run: Path, tmp_path: Path) -> None:
    """Undo everything after step 10 and go on from there: the same ten losses come out."""
    shutil.copytree(finished_run, tmp_path / "run")
    run = tmp_path / "run"
    for folder in ("checkpoint-20", "master"):
        shutil.rmtree(run / folder)
    config = tiny_config(tmp_path, text_dir=str(finished_run.parent / "sources"))
    pretrain(config, resume=True, say=lambda _: None)
    assert losses(run) == pytest.approx(losses(finished_run))
    assert len(read_log(run / "log.jsonl")) == len(read_log(finished_run / "log.jsonl"))


def test_another_run_is_not_resumed(finished_run: Path) -> None:
    config = tiny_config(finished_run.parent, text_dir=str(finished_run.parent / "sources"), seed=12)
    with pytest.raises(UsageError, match="was begun with seed = "):
        pretrain(config, resume=True, say=lambda _: None)


def test_a_finished_run_is_not_overwritten(finished_run: Path) -> None:
    config = tiny_config(finished_run.parent)
    with pytest.raises(OutputError, match="holds a run already; add --resume"):
        pretrain(config, say=lambda _: None)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint to resume from; start without --resume"):
        pretrain(tiny_config(tmp_path), resume=True, say=lambda _: None)


def test_a_vocabulary_larger_than_the_text_yields(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="vocab_size = 5000, but the text yields"):
        pretrain(tiny_config(tmp_path, vocab_size=5000), say=lambda _: None)


def test_a_text_shorter_than_two_windows(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fewer than 8192 tokens on one side; shorten sequence_length"):
        pretrain(
            tiny_config(tmp_path, sequence_length=4096, max_position_embeddings=4096), say=lambda _: None
        )


def test_command_line_reports_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.toml"
    config.write_text(tiny_config(tmp_path).to_toml() + "stepz = 1\n", encoding="utf-8")
    assert main(["pretrain", str(config)]) == 2
    assert main(["export", str(tmp_path), str(tmp_path / "out")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: ") for line in lines)


def test_command_line_prints_held_out_text(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    folder = write_sources(tmp_path / "sources")
    assert (
        main(["held-out", "--text-dir", str(folder), "--held-out-percent", "20", "--max-bytes", "300"]) == 0
    )
    assert 200 < len(capfdbinary.readouterr().out) <= 300
