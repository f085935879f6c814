"""The folders of a run: one per stage, with checkpoints to resume from and at last the model.

Whatever can be interrupted appears under its final name, or is marked complete, only when it is complete.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState

from bitexport.errors import OutputError
from bitexport.system.files import whole_folder, write_atomically
from bitexport.train.config import TrainConfig
from bitexport.train.student.checkpoint import save_checkpoint

#: A stage's model, in the stage's folder. It appears last: a stage that has it is finished.
MODEL = "model"
#: The file that is written last into a checkpoint: without it, the writer was interrupted.
COMPLETE = "complete"
# Keys that may change when a run is resumed.
_FREE_KEYS = ("run_dir", "threads", "save_every", "log_every", "report_to", "data_cache", "compile")


def stage_folder(run_dir: Path | str, stage: str) -> Path:
    """The folder of a stage: ``pretrain`` or ``stage1`` to ``stage3``."""
    return Path(run_dir) / (stage if stage == "pretrain" else f"stage{stage}")


def prepare_run(config: TrainConfig, stages: list[str], *, resume: bool) -> None:
    """Make the folders, remove checkpoints that a killed run left incomplete, and write config.toml.

    Raises:
        OutputError: a stage has been run already and ``resume`` is off.
        UsageError: ``resume`` is on and a setting that changes the result differs from the run's.
    """
    run_dir = Path(config.run_dir)
    folders = [stage_folder(run_dir, stage) for stage in stages]
    config_path = run_dir / "config.toml"
    if not resume:
        _check_unused(folders)
    elif config_path.is_file():
        free_keys = [*_FREE_KEYS]
        if not config.early_stopping:  # with it, evaluations decide when the stage ends
            free_keys += ["eval_every", "eval_examples"]
        config.require_same(config_path, free_keys)
    PartialState().wait_for_everyone()  # nobody writes before all have checked
    if PartialState().is_main_process:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            remove_incomplete_checkpoints(folder)
        write_atomically(config_path, config.to_toml().encode())
    PartialState().wait_for_everyone()


def last_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint-<step> with the highest step in a stage's folder."""
    complete = [path for path in folder.glob("checkpoint-*") if (path / COMPLETE).exists()]
    return max(complete, key=_step_of, default=None)


def remove_incomplete_checkpoints(folder: Path) -> None:
    """Remove checkpoints that a killed run left incomplete in a stage's folder."""
    for path in folder.glob("checkpoint-*"):
        if not (path / COMPLETE).exists():
            shutil.rmtree(path)


def resume_advice(folder: Path) -> str:
    """For the message when the disk is full: which checkpoint of the stage is left, and what to do."""
    last = last_checkpoint(folder)
    kept = "there is no checkpoint yet" if last is None else f"{last} is kept"
    return f"{kept}; make room, then continue with --resume"


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save a stage's model, in the main process: under a temporary name, then renamed to ``folder``/model.

    Raises:
        OutputError: it cannot be written; nothing incomplete is left.
    """
    if PartialState().is_main_process:
        temporary = folder / f"{MODEL}.part"
        with whole_folder(temporary, resume_advice(folder)):
            save_checkpoint(model, tokenizer, temporary)
            temporary.rename(folder / MODEL)
    PartialState().wait_for_everyone()


def _check_unused(folders: list[Path]) -> None:
    for folder in folders:
        if last_checkpoint(folder) is not None or (folder / MODEL).exists():
            raise OutputError(
                f"{folder}: already contains a run; add --resume to continue it, or give another --run-dir"
            )


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
