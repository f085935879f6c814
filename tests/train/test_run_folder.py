"""Checkpoints of a stage: the last complete one counts, incomplete ones are removed."""

from __future__ import annotations

from pathlib import Path

from bitexport.train.run_folder import (
    COMPLETE,
    last_checkpoint,
    remove_incomplete_checkpoints,
    resume_advice,
    stage_folder,
)


def checkpoint(folder: Path, step: int, *, complete: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "model.safetensors").touch()
    if complete:
        (path / COMPLETE).touch()
    return path


def test_the_last_checkpoint_is_the_complete_one_with_the_highest_step(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for step in (900, 1000):  # 1000 sorts before 900 as text
        checkpoint(tmp_path, step)
    incomplete = checkpoint(tmp_path, 1100, complete=False)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-1000"
    remove_incomplete_checkpoints(tmp_path)
    assert not incomplete.exists()
    assert len(list(tmp_path.iterdir())) == 2


def test_advice_names_the_checkpoint_that_is_left(tmp_path: Path) -> None:
    advice = "there is no checkpoint yet; make room, then continue with --resume"
    assert resume_advice(tmp_path) == advice
    path = checkpoint(tmp_path, 5)
    assert resume_advice(tmp_path) == f"{path} is kept; make room, then continue with --resume"


def test_folders_of_stages() -> None:
    assert [stage_folder("run", stage).name for stage in ("pretrain", "1", "3")] == [
        "pretrain",
        "stage1",
        "stage3",
    ]
