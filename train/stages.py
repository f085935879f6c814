"""The stages of a run, top to bottom: pretraining a teacher, and the three that make a student of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoTokenizer, PrinterCallback
from transformers.utils import logging as transformers_logging

from bitexport.errors import OutputError, UsageError
from bitexport.progress import Progress, ignore
from bitexport.records import read_sources, special_tokens_of, split, texts_of
from bitexport.records.bpe import train_tokenizer
from train.config import TrainConfig, load_config
from train.data import Data, load_data, template_of, write_held_out
from train.distill import Objective
from train.log import RunLog
from train.model import build_model
from train.plan import BatchPlan, in_order
from train.schedules import WarmedEarlyStopping
from train.surgery import calibrate, load_causal_lm, make_student, replace_projections, save
from train.trainer import StopRequest, StudentTrainer, last_checkpoint, training_arguments

Say = Callable[[str], None]
STAGES = ("pretrain", "1", "2", "3", "all")
# Where a stage's model comes to stand, below the run's folder.
MODEL = "model"


def train(
    config: TrainConfig, stage: str, *, resume: bool = False, say: Say = print, progress: Progress = ignore
) -> Path:
    """Run a stage, or 1 to 3 one after the other, and return the folder of the model that it made.

    Below ``run_dir`` each stage has a folder: ``model/`` (what ``bitexport convert`` takes),
    checkpoint-<step>/ for resuming, log.jsonl, loss.png, runs/ for TensorBoard, result.json. Beside them are
    config.toml (every setting) and held_out.jsonl.

    Args:
        stage: one of :data:`STAGES`; "all" leaves out stage 2 where ``stage2_tokens`` is 0.
        resume: go on from the last checkpoint; stages that are finished are not run again.
        say: gets lines for the log.

    Raises:
        OutputError: the folder holds this stage already and ``resume`` is off; or the disk is full.
        UsageError: settings that do not fit, data that is missing, a stage before its predecessor.
        DivergedError: a loss or gradient is not finite.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is saved.
    """
    if stage not in STAGES:
        raise UsageError(f"stage {stage!r}; expected {', '.join(STAGES)}")
    main = PartialState().is_main_process
    transformers_logging.disable_progress_bar()  # ours is of tokens
    say, progress = (say, progress) if main else (lambda _text: None, ignore)
    run = Path(config.run_dir)
    numbers = [stage] if stage != "all" else ["1", *(["2"] if config.stage2_tokens else []), "3"]
    _keep_config(run, config, resume, [_folder(run, number) for number in numbers])
    say(config.to_toml())
    if config.threads:
        torch.set_num_threads(config.threads)
    for number in numbers:
        folder = _folder(run, number)
        if resume and (folder / MODEL / "config.json").exists():
            say(f"{folder}: finished already")
        elif number == "1":
            _surgery(config, folder, say)
        else:
            _fit(config, number, folder, say, progress)
    return _folder(run, numbers[-1]) / MODEL


def _folder(run: Path, number: str) -> Path:
    return run / (number if number == "pretrain" else f"stage{number}")


def _keep_config(run: Path, config: TrainConfig, resume: bool, folders: list[Path]) -> None:
    """Make the run's folder and write config.toml there; refuse to run over another run."""
    kept = run / "config.toml"
    try:
        for folder in folders:
            used = last_checkpoint(folder) or (folder / MODEL).exists()
            if used and not resume:
                raise OutputError(
                    f"{folder}: holds a run already; add --resume to go on, or give another --run-dir"
                )
            folder.mkdir(parents=True, exist_ok=True)
        if resume and kept.is_file():
            _refuse_another_run(kept, config)
        if PartialState().is_main_process:
            kept.write_text(config.to_toml(), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{run}: {error.strerror}; give another --run-dir") from error


def _refuse_another_run(kept: Path, config: TrainConfig) -> None:
    """Raise UsageError when the run was begun with settings that change what it computes."""
    before = load_config(kept)
    for name in ("run_dir", "threads", "save_every", "eval_every", "eval_examples", "log_every", "report_to"):
        before = type(before)(**{**vars(before), name: getattr(config, name)})
    for name, value in vars(before).items():
        if value != getattr(config, name):
            raise UsageError(
                f"{kept.parent} was begun with {name} = {value!r}, now it is {getattr(config, name)!r}; "
                "resume with what it was, or start another run with --run-dir"
            )


def _surgery(config: TrainConfig, folder: Path, say: Say) -> None:
    """Stage 1: the teacher gets SubLN, with gains that its activations ask for, and ternary layers."""
    student, tokenizer = load_causal_lm(_teacher(config)), AutoTokenizer.from_pretrained(config.teacher)
    if config.sub_norms:
        make_student(student)
        if config.calibration_batches:
            data = load_data(config.data, config, template_of(config), tokenizer, folder)
            wanted = config.calibration_batches * config.micro_batch_tokens // config.sequence_length
            calibrate(student, in_order(data.train, config.micro_batch_tokens, max(1, wanted), pad_id=0))
    else:
        replace_projections(student)
    if PartialState().is_main_process:
        save(student, tokenizer, folder / MODEL)
    PartialState().wait_for_everyone()
    say(f"stage 1: {describe(student)}; wrote {folder / MODEL}")


def _teacher(config: TrainConfig) -> str:
    if not config.teacher:
        raise UsageError("config: teacher is not set; give the folder of a full-precision checkpoint")
    return config.teacher


def _start(config: TrainConfig, number: str) -> Path:
    """The folder of the model that stage 2 or 3 goes on with."""
    if config.student:
        return Path(config.student)
    before = "2" if number == "3" and config.stage2_tokens else "1"
    folder = _folder(Path(config.run_dir), before) / MODEL
    if not folder.exists():
        raise UsageError(f"{folder} is missing; run --stage {before} first, or set student to a checkpoint")
    return folder


def _fit(config: TrainConfig, number: str, folder: Path, say: Say, progress: Progress) -> None:
    """Any stage but the first: data, model, objective, Trainer, result."""
    specs, budget, rate = _settings(config, number)
    teacher = None
    if number == "pretrain":
        config.require_shape()
        tokenizer = _tokenizer_of_run(config)
        model = build_model(config, tokenizer.eos_token_id)
    else:
        start = _start(config, number)
        model, tokenizer = load_causal_lm(start), AutoTokenizer.from_pretrained(start)
        terms = ("logits", "relation", "feature", "attention", "contrastive")
        if number == "3" and any(getattr(config, f"{name}_weight") for name in terms):
            teacher = load_causal_lm(_teacher(config))
    if config.attention_weight and number == "3":
        for each in filter(None, (model, teacher)):
            each.set_attn_implementation("eager")  # the only one that gives its probabilities
    template = template_of(config, "plain" if number == "2" else "")
    with PartialState().main_process_first():
        data = load_data(specs, config, template, tokenizer, folder)
        if template.name != "plain" and PartialState().is_main_process:
            held_out = split(read_sources(specs), config.held_out_percent).held_out
            write_held_out(held_out, template, tokenizer, Path(config.run_dir) / "held_out.jsonl")
    say(data.summary)
    say(describe(model))
    trainer = _trainer(config, folder, (model, teacher, tokenizer), data, (budget, rate), say, progress)
    started = time.monotonic()
    _run(trainer, folder, config.compile, say)
    save(model, tokenizer, folder / MODEL) if trainer.is_world_process_zero() else None
    result = {
        "stage": number,
        "steps": trainer.state.global_step,
        "tokens": int(trainer.plan.tokens_after[trainer.state.global_step]),
        "held_out_loss": trainer.evaluate()["eval_loss"],
        "seconds": round(time.monotonic() - started, 1),
    }
    if trainer.is_world_process_zero():
        (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        from bitexport.report.losses import plot

        plot(folder / "log.jsonl", folder / "loss.png")
    say(f"stage {number}: held-out loss {result['held_out_loss']:.4f} nats a token; wrote {folder / MODEL}")


def _settings(config: TrainConfig, number: str) -> tuple[list[str], int, float]:
    """Sources, token budget and learning rate of a stage."""
    specs = config.corpus if number == "2" else config.data
    budget = int(getattr(config, f"{number}_tokens" if number == "pretrain" else f"stage{number}_tokens"))
    rate = 0.0 if number == "pretrain" else float(getattr(config, f"stage{number}_learning_rate"))
    if not specs:
        raise UsageError("config: corpus is empty; expected at least one source, hub: or text: for instance")
    if budget <= 0:
        raise UsageError(f"config: no token budget for stage {number}; set it to a number above 0")
    return specs, budget, rate or config.learning_rate


def _trainer(
    config: TrainConfig,
    folder: Path,
    parts: tuple[Any, Any, Any],
    data: Data,
    amount: tuple[int, float],
    say: Say,
    progress: Progress,
) -> StudentTrainer:
    (model, teacher, tokenizer), (budget, rate) = parts, amount
    world = PartialState().num_processes
    per_step, rest = divmod(config.batch_tokens, config.micro_batch_tokens)
    if per_step % world:
        raise UsageError(
            f"config: batch_tokens / micro_batch_tokens = {per_step} micro-batches a step do not share out "
            f"to {world} processes; make it a multiple of {world}"
        )
    assert rest == 0, "the configuration has checked it"
    micro = config.micro_batch_tokens
    pad = tokenizer.eos_token_id
    plan = BatchPlan(
        data.train, micro_tokens=micro, per_step=per_step, budget=budget, seed=config.seed, pad_id=pad
    )
    arguments = training_arguments(config, folder, rate, plan.steps)
    arguments.gradient_accumulation_steps = per_step // world
    if teacher is not None:
        teacher.to(arguments.device)
    if config.compile:
        model.compile()
    trainer = StudentTrainer(
        model,
        Objective(config, model, teacher),
        config,
        plan,
        in_order(data.held_out, micro, config.eval_examples, pad),
        lambda_steps=round(config.lambda_warmup_ratio * plan.steps),
        args=arguments,
        processing_class=tokenizer,  # saved with every checkpoint
    )
    trainer.remove_callback(PrinterCallback)  # RunLog prints
    trainer.add_callback(RunLog(folder / "log.jsonl", plan, say, progress))
    if config.early_stopping:
        trainer.add_callback(WarmedEarlyStopping())
    return trainer


def _run(trainer: StudentTrainer, folder: Path, compiled: bool, say: Say) -> None:
    """Train to the end, or until somebody asks for a stop."""
    stop = StopRequest()
    trainer.add_callback(stop)
    checkpoint = last_checkpoint(folder)
    if checkpoint is not None:
        say(f"going on from {checkpoint}")
    with torch.compiler.set_stance("default" if compiled else "force_eager"), stop.listening():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if stop.asked and trainer.state.global_step < trainer.state.max_steps:
        say(
            f"stopped after step {trainer.state.global_step}; {last_checkpoint(folder)} is saved: "
            "go on with --resume"
        )
        raise KeyboardInterrupt


def _tokenizer_of_run(config: TrainConfig) -> Any:
    """The tokenizer saved with the run, or a new one: a resumed run must keep the ids that it began with."""
    folder = Path(config.run_dir) / "tokenizer"
    with PartialState().main_process_first():
        if not (folder / "tokenizer.json").exists():
            records = split(read_sources(config.data), config.held_out_percent).train
            texts = (text for record in records for text in texts_of(record))
            special = special_tokens_of(template_of(config))
            tokenizer = train_tokenizer(texts, config.vocab_size, config.max_position_embeddings, special)
            if len(tokenizer) != config.vocab_size:
                raise UsageError(
                    f"config: vocab_size = {config.vocab_size}, but the text yields only {len(tokenizer)}"
                )
            tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def describe(model: torch.nn.Module) -> str:
    """How many parameters are ternary, how many stay float."""
    from train.bitlinear import BitLinear

    ternary = sum(m.weight.numel() for m in model.modules() if isinstance(m, BitLinear))
    whole = sum(parameter.numel() for parameter in model.parameters())
    return f"{ternary:,} ternary parameters, {whole - ternary:,} float"
