"""The stages of a run, top to bottom: pretraining a teacher, and the three that make a student of it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers.utils import logging as transformers_logging

from bitexport.checkpoint import open_checkpoint
from bitexport.errors import OutputError, UsageError
from bitexport.evaluation import render_pairs, write_pairs
from bitexport.progress import Progress, ignore
from bitexport.reference.model import load_tokenizer
from bitexport.system.files import whole_folder, write_atomically
from bitexport.text import read_sources, special_tokens_of, split
from bitexport.train.config import TrainConfig
from bitexport.train.data.batches import BatchPlan, in_order
from bitexport.train.data.bpe import save_tokenizer
from bitexport.train.data.examples import Data, load_data, template_of
from bitexport.train.log import RunLog
from bitexport.train.loss_curve import plot, read_log
from bitexport.train.objective.objective import TERMS, Objective
from bitexport.train.student.bitlinear import BitLinear
from bitexport.train.student.fresh import build_model
from bitexport.train.student.surgery import calibrate, load_causal_lm, make_student, replace_projections, save
from bitexport.train.trainer import StudentTrainer, how_to_go_on, last_checkpoint, remove_incomplete

Say = Callable[[str], None]
STAGES = ("pretrain", "1", "2", "3", "all")
# A stage's model, below its folder. It appears last, and whole: a stage that has it is finished.
MODEL = "model"


def train(
    config: TrainConfig, stage: str, *, resume: bool = False, say: Say = print, progress: Progress = ignore
) -> Path:
    """Run a stage, or 1 to 3 one after the other, and return the folder of the model that it made.

    Below ``run_dir`` each stage has a folder: ``model/`` (what ``bitexport convert`` takes),
    checkpoint-<step>/ for resuming, log.jsonl, loss.png, runs/ for TensorBoard, result.json. Beside them are
    config.toml (every setting) and held_out.jsonl. "all" leaves out stage 2 where ``stage2_tokens`` is 0;
    ``resume`` goes on from the last checkpoint and skips what is finished; ``say`` gets lines for the log.

    Raises:
        OutputError: the folder holds this stage already and ``resume`` is off; or the disk is full.
        UsageError, CheckpointError: what does not fit, or is missing: settings, data, a model to begin with.
        DivergedError: a loss, gradient or weight is not finite.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is saved.
    """
    if stage not in STAGES:
        raise UsageError(f"stage {stage!r}; expected {', '.join(STAGES)}")
    # What is said first holds for all PartialState() to come; without cpu, it sees no processes on CPUs.
    if not PartialState(cpu=not torch.cuda.is_available()).is_main_process:
        say, progress = (lambda _text: None), ignore
    transformers_logging.disable_progress_bar()  # ours is of tokens
    run = Path(config.run_dir)
    numbers = [stage] if stage != "all" else ["1", *(["2"] if config.stage2_tokens else []), "3"]
    _check(config, numbers)
    try:
        _keep_config(run, config, resume, [_folder(run, number) for number in numbers])
        say(config.to_toml())
        if config.threads:
            torch.set_num_threads(config.threads)
        for number in numbers:
            folder = _folder(run, number)
            if (folder / MODEL).exists():
                say(f"{folder}: finished already")
            elif number == "1":
                _surgery(config, folder, say, whole=stage == "all")
            else:
                _fit(config, number, folder, say, progress)
    except OSError as error:
        what = f"{error.filename or run}: {error.strerror or error}"
        raise OutputError(f"{what}; make room or give another --run-dir, then go on with --resume") from error
    return _folder(run, numbers[-1]) / MODEL


def _folder(run: Path, number: str) -> Path:
    return run / (number if number == "pretrain" else f"stage{number}")


def _check(config: TrainConfig, numbers: list[str]) -> None:
    """Raise, before anything is written, what can be known now and would end a later stage."""
    if config.report_to != "none" and importlib.util.find_spec(config.report_to) is None:
        found = f'config: report_to = "{config.report_to}", which is not installed'
        raise UsageError(f'{found}; pip install {config.report_to}, or set "none"')
    config.require(not (config.student and len(numbers) > 1), "student", '"" with --stage all')
    for number in numbers:
        if number != "1":
            _settings(config, number)
        if number == "pretrain":
            config.require_shape()
        if number == "1" or (number == "3" and _has_teacher(config)):
            if not config.teacher:
                raise UsageError("config: teacher is not set; give the folder of a full-precision checkpoint")
            open_checkpoint(config.teacher)
    if numbers[0] in ("2", "3"):
        open_checkpoint(_start(config, numbers[0]))


def _settings(config: TrainConfig, number: str) -> tuple[list[str], int, float]:
    """Sources, token budget and learning rate of a stage."""
    stage = number if number == "pretrain" else f"stage{number}"
    name, budget = "corpus" if number == "2" else "data", int(getattr(config, f"{stage}_tokens"))
    config.require(bool(getattr(config, name)), name, "at least one source, hub: or text: for instance")
    config.require(budget > 0, f"{stage}_tokens", "a number above 0")
    rate = getattr(config, f"{stage}_learning_rate", 0.0) or config.learning_rate
    return getattr(config, name), budget, rate


def _has_teacher(config: TrainConfig) -> bool:
    return any(getattr(config, f"{name}_weight") for name in TERMS)


def _start(config: TrainConfig, number: str) -> Path:
    """The folder of the model that stage 2 or 3 goes on with."""
    if config.student:
        return Path(config.student)
    before = "2" if number == "3" and config.stage2_tokens else "1"
    folder = _folder(Path(config.run_dir), before) / MODEL
    if not folder.exists():
        raise UsageError(f"{folder} is missing; run --stage {before} first, or set student to a checkpoint")
    return folder


def _keep_config(run: Path, config: TrainConfig, resume: bool, folders: list[Path]) -> None:
    """Make the run's folder and write config.toml there; refuse to run over another run."""
    for folder in folders:
        if not resume and (last_checkpoint(folder) or (folder / MODEL).exists()):
            raise OutputError(
                f"{folder}: holds a run already; add --resume to go on, or give another --run-dir"
            )
    kept = run / "config.toml"
    if resume and kept.is_file():
        judges = [] if config.early_stopping else ["eval_every", "eval_examples"]  # of when it ends
        config.require_same(kept, ["run_dir", "threads", "save_every", "log_every", "report_to", *judges])
    PartialState().wait_for_everyone()  # nobody writes before all have looked
    if PartialState().is_main_process:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            remove_incomplete(folder)
        write_atomically(kept, config.to_toml().encode())
    PartialState().wait_for_everyone()


def _surgery(config: TrainConfig, folder: Path, say: Say, *, whole: bool) -> None:
    """Stage 1: the teacher gets SubLN, with gains that its activations ask for, and ternary layers."""
    student, tokenizer = load_causal_lm(config.teacher), load_tokenizer(Path(config.teacher))
    if whole and not config.student and _has_teacher(config):
        Objective(config, student, student)  # refuses now, not when stage 2 is over
    if config.sub_norms:
        make_student(student)
        if config.calibration_batches:
            micro, wanted = config.micro_batch_tokens, config.calibration_batches * config.micro_batch_tokens
            # Of a stream 100 times as much: the held-out side, 1% of it perhaps, must not be empty.
            data = load_data(config.data, config, template_of(config), tokenizer, folder, 100 * wanted)
            calibrate(student, in_order(data.train, micro, wanted // config.sequence_length, pad_id=0))
    else:
        replace_projections(student)
    _save_model(student, tokenizer, folder / MODEL)
    say(f"stage 1: {describe(student)}; wrote {folder / MODEL}")


def _save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Under another name first: where the folder is, it is whole."""
    if PartialState().is_main_process:
        temporary = folder.with_name(f"{folder.name}.part")
        with whole_folder(temporary, how_to_go_on(folder.parent)):
            save(model, tokenizer, temporary)
            temporary.rename(folder)
    PartialState().wait_for_everyone()


def _fit(config: TrainConfig, number: str, folder: Path, say: Say, progress: Progress) -> None:
    """Any stage but the first: data, model, objective, Trainer, result."""
    model, teacher, tokenizer = _models(config, number)
    specs, budget, rate = _settings(config, number)
    template = template_of(config, "plain" if number == "2" else "")
    with PartialState().main_process_first():
        data = load_data(specs, config, template, tokenizer, folder, budget)
        if template.name != "plain" and PartialState().is_main_process:
            pairs = render_pairs(data.pairs, template, tokenizer)
            write_pairs(pairs, Path(config.run_dir) / "held_out.jsonl")
    say(f"{data.summary}\n{describe(model)}")
    plan = _plan(config, data, budget, tokenizer.eos_token_id)
    if config.compile:
        model.compile()
    held_out = in_order(data.held_out, config.micro_batch_tokens, config.eval_examples, plan.pad_id)
    trainer = StudentTrainer(config, folder, (model, teacher, tokenizer), plan, held_out, rate)
    trainer.add_callback(RunLog(folder / "log.jsonl", trainer.objective, plan.tokens_after, say, progress))
    _run(trainer, folder, config.compile, say)
    if trainer.is_fsdp_enabled:
        model = _gathered(trainer, config, number)
    loss = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line][-1]
    if PartialState().is_main_process:
        step, seconds = trainer.state.global_step, read_log(folder / "log.jsonl")[-1]["seconds"]
        tokens = int(plan.tokens_after[step])
        result = {"stage": number, "steps": step, "tokens": tokens, "held_out_loss": loss, "seconds": seconds}
        write_atomically(folder / "result.json", (json.dumps(result, indent=2) + "\n").encode())
    _save_model(model, tokenizer, folder / MODEL)
    if PartialState().is_main_process:
        plot(folder / "log.jsonl", folder / "loss.png")
    say(f"stage {number}: held-out loss {loss:.4f} nats a token; wrote {folder / MODEL}")


def _gathered(trainer: StudentTrainer, config: TrainConfig, number: str) -> Any:
    """The model whole, in the first process; all take part."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(trainer.model, options=options)
    if not PartialState().is_main_process:
        return None
    if number == "pretrain":
        model = build_model(config, trainer.processing_class.eos_token_id)
    else:
        model = load_causal_lm(_start(config, number))
    model.load_state_dict(state)
    return model


def _models(config: TrainConfig, number: str) -> tuple[Any, Any, Any]:
    """The model to train, its teacher or None, and the tokenizer."""
    if number == "pretrain":
        folder = Path(config.run_dir) / "tokenizer"  # a resumed run needs the ids that it began with
        with PartialState().main_process_first():
            if PartialState().is_main_process and last_checkpoint(folder.with_name(number)) is None:
                records = split(read_sources(config.data), config.held_out_percent).train
                special, length = special_tokens_of(template_of(config)), config.max_position_embeddings
                save_tokenizer(folder, records, config.vocab_size, length, special)
        tokenizer = load_tokenizer(folder)
        return build_model(config, tokenizer.eos_token_id), None, tokenizer
    start = _start(config, number)
    model, tokenizer = load_causal_lm(start), load_tokenizer(start)
    teacher = load_causal_lm(config.teacher) if number == "3" and _has_teacher(config) else None
    if teacher is not None and config.attention_weight:
        for each in (model, teacher):
            each.set_attn_implementation("eager")  # the only one that gives its probabilities
    return model, teacher, tokenizer


def _plan(config: TrainConfig, data: Data, budget: int, pad_id: int) -> BatchPlan:
    micro, world = config.micro_batch_tokens, PartialState().num_processes
    per_step = config.batch_tokens // micro
    if per_step % world:
        raise UsageError(
            f"config: batch_tokens / micro_batch_tokens = {per_step} micro-batches a step do not share out "
            f"to {world} processes; make it a multiple of {world}"
        )
    sizes = {"micro_tokens": micro, "per_step": per_step, "budget": budget}
    return BatchPlan(data.train, seed=config.seed, pad_id=pad_id, **sizes)


def _run(trainer: StudentTrainer, folder: Path, compiled: bool, say: Say) -> None:
    """Train to the end, or until somebody asks for a stop."""
    checkpoint = last_checkpoint(folder)
    if checkpoint is not None:
        say(f"going on from {checkpoint}")
    with torch.compiler.set_stance("default" if compiled else "force_eager"), trainer.stop.listening():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    step = trainer.state.global_step
    if trainer.stop.asked and step < trainer.state.max_steps:
        say(f"stopped after step {step}; {last_checkpoint(folder)} is saved: go on with --resume")
        raise KeyboardInterrupt


def describe(model: torch.nn.Module) -> str:
    """How many parameters are ternary, how many stay float."""
    ternary = sum(m.weight.numel() for m in model.modules() if isinstance(m, BitLinear))
    whole = sum(parameter.numel() for parameter in model.parameters())
    return f"{ternary:,} ternary parameters, {whole - ternary:,} float"
