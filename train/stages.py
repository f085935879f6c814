"""The stages of a run, from top to bottom: pretraining a teacher, and the three that make a student of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers.utils import logging as transformers_logging

from bitexport.errors import OutputError, UsageError
from bitexport.evaluation import PromptAnswer, write_pairs
from bitexport.progress import Progress, ignore
from bitexport.reference.model import load_tokenizer
from bitexport.system.files import write_atomically
from bitexport.train.compiling import compile_layers, compiles, packs
from bitexport.train.config import TrainConfig
from bitexport.train.data.batches import BatchPlan, sample_batches
from bitexport.train.data.examples import WindowedExamples
from bitexport.train.data.loading import StageData, calibration_examples, load_data, template_of
from bitexport.train.fsdp import gather_state_dict
from bitexport.train.log import RunLog, Say
from bitexport.train.loss_curve import plot, read_log
from bitexport.train.models import describe_parameters, load_models, rebuild_model
from bitexport.train.objective.diffusion import Noise, noise_of
from bitexport.train.objective.objective import Objective, needs_teacher
from bitexport.train.run_folder import MODEL, last_checkpoint, prepare_run, save_model, stage_folder
from bitexport.train.stage_settings import check_before_training, stage_settings, stages_of
from bitexport.train.student.calibration import calibrate
from bitexport.train.student.checkpoint import load_causal_lm
from bitexport.train.student.surgery import make_student, replace_projections
from bitexport.train.trainer import StudentTrainer


def train(
    config: TrainConfig, stage: str, *, resume: bool = False, say: Say = print, progress: Progress = ignore
) -> Path:
    """Run a stage, or stages 1 to 3 one after the other, and return the folder of the resulting model.

    ``run_dir`` has config.toml (every setting), held_out.jsonl, and a folder per stage: ``model/``, which
    ``bitexport convert`` accepts, checkpoint-<step>/ for resuming, log.jsonl, loss.png, runs/ for
    TensorBoard, result.json.

    Args:
        stage: "pretrain", "1", "2", "3" or "all", which skips stage 2 if ``stage2_tokens`` is 0.
        resume: continue from the last checkpoint, and skip stages that are finished.
        say: called with lines for the log.

    Raises:
        OutputError: the folder contains this stage already and ``resume`` is off; or the disk is full.
        UsageError, CheckpointError: settings, data or a starting model are missing or do not fit.
        DivergedError: a loss, gradient or weight is not finite.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is saved.
    """
    stages = stages_of(config, stage)
    # The first PartialState() decides for all others; without cpu=True it would ignore processes on CPUs.
    state = PartialState(cpu=not torch.cuda.is_available())
    if not state.is_main_process:
        say, progress = _say_nothing, ignore
    transformers_logging.disable_progress_bar()  # `progress` counts tokens instead
    check_before_training(config, stages)
    try:
        prepare_run(config, stages, resume=resume)
        say(config.to_toml())
        if config.threads:
            torch.set_num_threads(config.threads)
        for number in stages:
            _run_stage(config, number, stages, say, progress)
    except OSError as error:
        what = f"{error.filename or config.run_dir}: {error.strerror or error}"
        advice = "make room or give another --run-dir, then continue with --resume"
        raise OutputError(f"{what}; {advice}") from error
    return stage_folder(config.run_dir, stages[-1]) / MODEL


def _run_stage(config: TrainConfig, stage: str, stages: list[str], say: Say, progress: Progress) -> None:
    folder = stage_folder(config.run_dir, stage)
    if (folder / MODEL).exists():
        say(f"{folder}: already finished")
    elif stage == "1":
        _surgery(config, folder, say, will_distil="3" in stages)
    else:
        _fit(config, stage, folder, say, progress)


def _surgery(config: TrainConfig, folder: Path, say: Say, *, will_distil: bool) -> None:
    """Stage 1: the teacher gets ternary layers, and SubLN with gains that fit its activations."""
    student = load_causal_lm(config.teacher)
    tokenizer = load_tokenizer(Path(config.teacher))
    if will_distil and needs_teacher(config):
        Objective(config, student, student)  # rejects settings now instead of after stage 2
    if config.sub_norms:
        make_student(student)
        _calibrate(config, student, tokenizer)
    else:
        replace_projections(student)
    save_model(student, tokenizer, folder)
    say(f"stage 1: {describe_parameters(student)}; wrote {folder / MODEL}")


def _calibrate(config: TrainConfig, student: Any, tokenizer: Any) -> None:
    if not config.calibration_batches:
        return
    tokens = config.calibration_batches * config.micro_batch_tokens
    data = calibration_examples(config, template_of(config), tokenizer, tokens)
    examples = tokens // config.sequence_length
    batches = sample_batches(data, config.micro_batch_tokens, examples, pad_id=0)
    calibrate(student, batches)


def _fit(config: TrainConfig, stage: str, folder: Path, say: Say, progress: Progress) -> None:
    """Every stage but the first: models, data, training, result."""
    settings = stage_settings(config, stage)
    models = load_models(config, stage, say)
    data = _load_stage_data(config, stage, models.tokenizer, progress)
    say(f"{data.summary}\n{describe_parameters(models.student)}")
    pad_id = models.tokenizer.eos_token_id
    # Windows have one width anyway; fixed shapes matter to what is compiled.
    is_fixed = packs(config) or (compiles(config) and isinstance(data.held_out, WindowedExamples))
    width = config.sequence_length if is_fixed else 0
    plan = _plan(config, data, settings.tokens, pad_id, width, noise_of(config, models.student))
    held_out = sample_batches(data.held_out, config.micro_batch_tokens, config.eval_examples, pad_id, width)
    if compiles(config):
        for model in (models.student, models.teacher):
            if model is not None:
                compile_layers(model)
    trainer = StudentTrainer(config, folder, models, plan, held_out, settings.learning_rate)
    log = folder / "log.jsonl"
    trainer.add_callback(RunLog(log, trainer.objective, plan.tokens_after, say, progress, trainer.health))
    _run(trainer, folder, compiles(config), say)

    model = models.student
    if trainer.is_fsdp_enabled:
        state_dict = gather_state_dict(trainer.model)  # complete in the main process only
        if PartialState().is_main_process:
            model = rebuild_model(config, stage, models.tokenizer)
            model.load_state_dict(state_dict)
    loss = _last_held_out_loss(trainer)
    if PartialState().is_main_process:
        _write_result(folder, stage, trainer.state.global_step, plan, loss)
    save_model(model, models.tokenizer, folder)
    if PartialState().is_main_process:
        plot(folder / "log.jsonl", folder / "loss.png")
    say(f"stage {stage}: held-out loss {loss:.4f} nats per token; wrote {folder / MODEL}")


def _load_stage_data(config: TrainConfig, stage: str, tokenizer: Any, progress: Progress) -> StageData:
    """The data of a stage; the main process writes held-out pairs for ``bitexport eval``."""
    settings = stage_settings(config, stage)
    template = template_of(config, "plain" if stage == "2" else "")
    # One process tokenizes while the others wait for its lock, which has no time limit.
    data = load_data(settings.sources, config, template, tokenizer, settings.tokens, progress)
    if template.name != "plain" and PartialState().is_main_process:
        pairs = [PromptAnswer(*pair) for pair in data.held_out_pairs()]
        write_pairs(pairs, Path(config.run_dir) / "held_out.jsonl")
    return data


def _plan(
    config: TrainConfig, data: StageData, tokens: int, pad_id: int, width: int, noise: Noise | None
) -> BatchPlan:
    processes = PartialState().num_processes
    micro_batches = config.batch_tokens // config.micro_batch_tokens
    if micro_batches % processes:
        raise UsageError(
            f"config: batch_tokens / micro_batch_tokens = {micro_batches} micro-batches per step cannot be "
            f"divided among {processes} processes; make it a multiple of {processes}"
        )
    return BatchPlan(
        data.train,
        micro_tokens=config.micro_batch_tokens,
        per_step=micro_batches,
        budget=tokens,
        seed=config.seed,
        pad_id=pad_id,
        width=width,
        noise=noise,
    )


def _run(trainer: StudentTrainer, folder: Path, compiled: bool, say: Say) -> None:
    """Train to the end, or until a stop is asked for."""
    checkpoint = last_checkpoint(folder)
    if checkpoint is not None:
        say(f"continuing from {checkpoint}")
    stance = torch.compiler.set_stance("default" if compiled else "force_eager")
    with stance, trainer.stop.listening():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    step = trainer.state.global_step
    if trainer.stop.asked and step < trainer.state.max_steps:
        say(f"stopped after step {step}; {last_checkpoint(folder)} is saved: continue with --resume")
        raise KeyboardInterrupt


def _last_held_out_loss(trainer: StudentTrainer) -> float:
    losses: list[float] = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    return losses[-1]


def _write_result(folder: Path, stage: str, steps: int, plan: BatchPlan, held_out_loss: float) -> None:
    result = {
        "stage": stage,
        "steps": steps,
        "tokens": int(plan.tokens_after[steps]),
        "held_out_loss": held_out_loss,
        "seconds": read_log(folder / "log.jsonl")[-1]["seconds"],
    }
    write_atomically(folder / "result.json", (json.dumps(result, indent=2) + "\n").encode())


def _say_nothing(_text: str) -> None:
    pass
