"""Which stages a run has, what each takes from the configuration, and checks before the first one."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from bitexport.checkpoint import open_checkpoint
from bitexport.checkpoint.packings import quantization_config
from bitexport.errors import UsageError
from bitexport.train.config import TrainConfig
from bitexport.train.objective.objective import needs_teacher
from bitexport.train.run_folder import MODEL, stage_folder

STAGES = ("pretrain", "1", "2", "3", "all")


@dataclass(frozen=True)
class StageSettings:
    """What a stage trains on.

    Attributes:
        sources: the sources of its text.
        tokens: its budget, not counting padding.
        learning_rate: the peak of its schedule.
    """

    sources: list[str]
    tokens: int
    learning_rate: float


@dataclass(frozen=True)
class _Keys:
    sources: str
    tokens: str
    learning_rate: str


_KEYS = {
    "pretrain": _Keys("data", "pretrain_tokens", "learning_rate"),
    "2": _Keys("corpus", "stage2_tokens", "stage2_learning_rate"),
    "3": _Keys("data", "stage3_tokens", "stage3_learning_rate"),
}


def stages_of(config: TrainConfig, stage: str) -> list[str]:
    """The stages behind the value of ``--stage``; "all" skips stage 2 if ``stage2_tokens`` is 0.

    Raises:
        UsageError: ``stage`` is not one of :data:`STAGES`.
    """
    if stage not in STAGES:
        raise UsageError(f"stage {stage!r}; expected {', '.join(STAGES)}")
    if stage != "all":
        return [stage]
    return ["1", "2", "3"] if config.stage2_tokens else ["1", "3"]


def stage_settings(config: TrainConfig, stage: str) -> StageSettings:
    """The settings of stage "pretrain", "2" or "3".

    Raises:
        UsageError: there are no sources or no tokens.
    """
    keys = _KEYS[stage]
    sources: list[str] = getattr(config, keys.sources)
    tokens: int = getattr(config, keys.tokens)
    config.require(len(sources) > 0, keys.sources, "at least one source, for example hub: or text:")
    config.require(tokens > 0, keys.tokens, "a number above 0")
    learning_rate = getattr(config, keys.learning_rate) or config.learning_rate
    return StageSettings(sources, tokens, learning_rate)


def starting_model(config: TrainConfig, stage: str) -> Path:
    """The folder of the model that stage 2 or 3 starts from.

    Raises:
        UsageError: the stage before has not been run, and ``student`` is not set.
    """
    if config.student:
        return Path(config.student)
    before = "2" if stage == "3" and config.stage2_tokens else "1"
    folder = stage_folder(config.run_dir, before) / MODEL
    if not folder.exists():
        raise UsageError(f"{folder} is missing; run --stage {before} first, or set student to a checkpoint")
    return folder


def check_before_training(config: TrainConfig, stages: list[str]) -> None:
    """Raise errors that would otherwise end a later stage, before anything is written.

    Raises:
        UsageError: a setting is missing or does not fit the stages.
        CheckpointError: the teacher or the starting model cannot be opened.
    """
    if config.report_to != "none" and importlib.util.find_spec(config.report_to) is None:
        found = f'config: report_to = "{config.report_to}", which is not installed'
        raise UsageError(f'{found}; pip install {config.report_to}, or set "none"')
    if len(stages) > 1:
        config.require(config.student == "", "student", '"" with --stage all')
    for stage in stages:
        if stage != "1":
            stage_settings(config, stage)
        if stage == "pretrain":
            config.check_shape()
        if stage == "1" or (stage == "3" and needs_teacher(config)):
            _check_teacher(config)
    if stages[0] in ("2", "3"):
        open_checkpoint(starting_model(config, stages[0]))


def _check_teacher(config: TrainConfig) -> None:
    if not config.teacher:
        raise UsageError("config: teacher is not set; give the folder of a full-precision checkpoint")
    quantization = quantization_config(open_checkpoint(config.teacher).config)
    if quantization is not None:
        raise UsageError(
            f"config: teacher {config.teacher} is already ternary; expected "
            "a full-precision checkpoint; to continue training this one, set student to it"
        )
